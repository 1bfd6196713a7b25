//! What every store must do, as tests that any store can run.
//!
//! A backend gives a [`Harness`] and writes `runtara_store::conformance_suite!(harness().await)`, which makes one test of each case. A
//! case is an ordinary function and can also be called alone. [`differential`] plays random histories on two stores and compares all
//! that they answer.

#![expect(clippy::unwrap_used, reason = "a case fails by panicking")]

use std::sync::Arc;

use async_trait::async_trait;

use crate::Store;

pub mod admission;
pub mod bounds;
pub mod checkpoints;
pub mod claims;
pub mod differential;
pub mod events;
pub mod folding;
pub mod images;
pub mod instances;
pub mod liveness;
pub mod make;
pub mod metrics;
pub mod nodes;
pub mod nudges;
pub mod removal;
pub mod runs;
pub mod signals;
pub mod starts;
pub mod steps;
pub mod transitions;
pub mod waits;
pub mod world;

/// A store to be tested.
///
/// Each case is given a harness of its own, with a store that nobody else uses and in which there is nothing yet: a claim takes
/// whatever is due, whoever started it.
#[async_trait]
pub trait Harness: Send + Sync {
    /// The store.
    fn store(&self) -> Arc<dyn Store>;

    /// Moves the clock by which the store decides. It stands still otherwise, so that times can be compared exactly.
    async fn advance(&self, millis: u64);
}

/// Names every case once; `conformance_suite!` makes a test of each.
macro_rules! cases {
    ($d:tt $($module:ident { $($case:ident),+ $(,)? })+) => {
        /// Makes one test of each case of the conformance suite, with a fresh harness for each: the value of the given expression,
        /// which may await.
        #[macro_export]
        macro_rules! conformance_suite {
            ($d harness:expr) => {
                $(
                    mod $module {
                        use super::*;
                        $(
                            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
                            async fn $case() {
                                let harness = $d harness;
                                $d crate::conformance::$module::$case(&harness).await;
                            }
                        )+
                    }
                )+
            };
        }

        #[cfg(test)]
        const CASES: &[(&str, &[&str])] = &[$((stringify!($module), &[$(stringify!($case)),+])),+];
    };
}

cases! { $
    starts {
        a_start_is_pending_and_due,
        the_same_start_again_is_the_same_instance,
        another_start_with_a_taken_id_is_refused,
        a_self_registered_id_cannot_be_started,
        a_start_needs_an_image_of_its_tenant,
        a_delayed_start_waits_for_its_time,
        a_delay_is_counted_by_the_stores_clock,
        a_start_may_be_overdue,
        the_same_start_at_once_is_one_instance,
        an_unknown_instance_is_named_unknown,
    }
    transitions {
        every_change_before_the_first_run,
        every_change_while_running,
        every_change_while_a_signal_waits,
        every_change_while_asleep,
        every_change_while_suspended,
        every_change_after_the_end,
        every_change_after_a_resume,
        every_change_of_a_self_registered_instance,
        an_end_is_final,
        a_call_is_no_change_from_outside,
    }
    claims {
        a_claim_brings_what_a_launch_needs,
        claims_go_by_due_time_and_are_bounded_by_tokens,
        claims_are_of_the_kinds_that_are_asked_for,
        claims_leave_out_tenants,
        an_instance_with_a_live_process_is_not_claimed,
        a_relaunch_brings_the_last_checkpoint,
        a_large_input_is_asked_for,
        a_self_registered_instance_is_never_claimed,
        a_sleeper_is_claimed_at_its_time,
        no_instance_is_claimed_twice,
    }
    runs {
        a_superseded_run_changes_nothing,
        a_run_that_has_left_speaks_no_more,
        a_launched_instance_needs_its_token,
        a_token_speaks_for_its_own_instance,
        an_unknown_instance_has_no_run,
        late_words_change_nothing,
        late_words_do_not_end_a_suspended_instance,
        a_registration_is_recorded_once_for_each_run,
        a_registration_is_checked,
        an_instance_may_register_itself,
        a_refused_first_registration_makes_nothing,
        a_self_registered_instance_cannot_be_resumed,
        a_token_names_its_run,
        live_runs_say_what_is_wanted_of_them,
        usage_is_summed_over_runs,
        time_is_counted_where_it_is_spent,
        the_time_after_an_end_is_not_counted,
        the_time_of_a_self_registered_instance_is_counted,
    }
    checkpoints {
        a_name_is_saved_once,
        an_empty_state_only_looks,
        a_new_checkpoint_is_progress,
        a_repeated_request_is_told_that_it_saved,
        two_savers_of_one_name_agree,
        savers_of_many_instances_do_not_mix,
        a_word_brings_a_state,
        versions_of_a_name_follow_each_other,
        a_retry_is_listed_and_is_no_checkpoint,
        the_longest_name_can_be_retried,
        the_list_is_cut_into_pages,
        a_save_after_the_end_is_refused,
        a_save_and_an_end_do_not_cross,
    }
    signals {
        a_signal_is_shown_until_it_is_acknowledged,
        a_resume_follows_a_pause,
        a_custom_signal_is_delivered_once_to_a_run,
        a_custom_signal_waits_for_the_first_run,
        a_later_run_is_shown_a_signal_again,
        only_what_is_saved_after_confirms,
        a_newer_signal_replaces_what_was_not_read,
        a_save_takes_the_signal_of_its_name,
        a_repeated_save_is_given_its_signal_again,
        a_repeated_take_is_given_its_signal_again,
        an_ended_instance_has_no_signals,
        signals_are_kept_apart,
        a_signal_is_taken_once_by_many,
    }
    waits {
        a_near_sleep_is_held,
        a_far_sleep_frees_its_process,
        an_early_run_owes_the_remainder,
        a_loop_under_one_name_replays,
        a_new_state_or_progress_is_a_new_sleep,
        a_repeated_call_is_the_same_sleep,
        a_sleep_that_is_not_over_is_the_same_sleep,
        a_replayed_sleep_that_is_not_over_is_the_same_sleep,
        a_sleep_that_is_met_again_is_not_the_last_checkpoint,
        a_sleeper_that_was_called_away_owes_the_remainder,
        a_sleep_needs_no_name,
        a_busy_run_is_held,
        the_branch_that_may_park_decides,
        a_branch_takes_back_that_it_may_park,
        an_impatient_client_is_parked_sooner,
        a_self_registered_instance_is_held,
        a_signal_acts_on_a_held_sleeper,
        a_signal_acts_when_a_sleep_begins,
        a_sleeper_without_a_process_obeys,
        a_held_sleep_is_parked_when_the_server_leaves,
        a_signal_wakes_who_waits_for_it,
        a_signal_that_came_before_is_given_at_once,
        a_signal_answers_a_held_wait,
        a_wait_ends_without_its_signal,
        a_repeated_wait_is_given_its_signal_again,
        a_sleep_is_progress,
        a_replayed_sleep_is_no_progress,
        records_of_waits_outlive_the_end,
    }
    events {
        an_event_is_read_back,
        the_first_heartbeat_of_a_run_is_an_event,
        signs_of_life_that_follow_each_other_closely_are_one,
        a_repeated_event_is_recorded_once,
        numbers_have_no_gaps_under_concurrency,
        events_are_found_by_type_and_time,
        events_are_found_by_what_they_say,
        events_are_found_by_scope,
        pages_meet_in_either_direction,
        an_unknown_instance_has_nothing,
        a_cursor_of_another_list_finds_nothing,
    }
    steps {
        a_step_takes_as_long_as_it_takes,
        a_repeated_step_has_its_own_end,
        scopes_keep_steps_apart,
        step_and_scope_are_not_mixed_up,
        other_events_are_no_steps,
        steps_are_found,
        pages_of_steps_meet,
        scopes_lead_outward,
        a_scope_counts_as_entered_last,
        scopes_in_a_ring_end,
    }
    images {
        an_image_is_read_back,
        a_name_means_the_newest,
        a_name_means_what_arrived_last,
        registrations_are_numbered,
        one_of_many_is_current,
        an_image_in_use_is_not_deleted,
        a_deletion_counts_up_to_a_thousand,
        a_deleted_image_is_kept_for_a_resume,
        unneeded_images_are_removed,
        a_base_stays_while_it_is_needed,
        removal_is_bounded,
        a_start_never_loses_its_image,
        unused_images_are_deleted,
        a_start_keeps_an_unused_image,
        images_are_listed,
    }
    instances {
        a_row_says_where_its_instance_stands,
        instances_are_found,
        prefixes_of_image_names_are_literal,
        every_order_is_total,
        pages_meet_in_every_order,
        a_walk_is_not_disturbed,
        totals_are_exact_up_to_ten_thousand,
        a_purge_leaves_nothing,
        a_result_is_kept_until_a_resume,
    }
    metrics {
        instances_are_counted_where_they_ended,
        buckets_begin_at_whole_hours,
        metrics_are_of_one_tenant,
    }
    nodes {
        a_node_knows_how_many_others_there_are,
        a_node_with_a_live_run_stays,
        a_drained_node_stays_drained,
        a_node_that_died_long_ago_is_forgotten,
        runs_are_lost_with_the_lease_of_their_node,
        nobody_loses_its_own_runs,
        a_node_that_was_alone_is_waited_for,
        a_node_without_a_lease_claims_nothing,
        a_drained_node_claims_nothing,
        nodes_are_listed,
        a_dead_node_is_removed,
        what_was_asked_of_a_lost_run_is_done,
        losing_is_bounded,
        a_run_is_lost_once,
        a_database_has_an_id,
        a_closed_store_is_away,
    }
    liveness {
        a_silent_run_is_ended,
        silence_at_last_fails,
        any_call_is_a_sign_of_life,
        an_instance_ends_by_its_deadline,
        what_is_over_is_not_claimed,
        a_resume_leaves_the_deadline,
        a_self_registered_instance_lapses,
        nothing_lapses_for_want_of_a_node,
    }
    admission {
        pending_instances_are_bounded,
        runs_of_a_tenant_are_bounded,
        runs_of_a_tenant_are_bounded_over_all_nodes,
        bytes_of_images_are_bounded,
    }
    bounds {
        the_longest_ids_serve,
        a_page_ends_by_what_its_rows_carry,
        names_differ_by_every_byte,
        large_states_are_saved_whole,
        bytes_are_kept_as_they_are,
        a_nul_in_a_text_does_no_harm,
        waits_are_told_apart,
    }
    nudges {
        a_due_instance_is_told,
        a_run_that_should_leave_is_told,
        a_watcher_hears_of_every_change,
        a_waiting_watcher_is_woken,
    }
    removal {
        instances_are_expired_by_how_and_when_they_ended,
        the_search_for_expired_instances_is_bounded,
        what_has_changed_since_stays,
        a_process_that_may_live_keeps_its_instance,
        a_large_instance_goes_in_pieces,
        an_id_may_be_used_while_something_is_left_of_it,
        a_number_is_not_given_twice,
        a_purge_and_a_resume_do_not_cross,
    }
    folding {
        the_oldest_events_are_folded,
        folding_goes_on,
        folding_is_bounded,
        who_is_not_bounded_keeps_all,
        pages_tell_what_was_folded,
        newer_steps_stay,
        a_folded_instance_is_removed,
    }
}

#[cfg(test)]
mod tests {
    use super::CASES;

    /// A case that is written and not named would never run.
    #[test]
    fn every_case_is_named() {
        let sources = [
            ("starts", include_str!("starts.rs")),
            ("transitions", include_str!("transitions.rs")),
            ("claims", include_str!("claims.rs")),
            ("runs", include_str!("runs.rs")),
            ("checkpoints", include_str!("checkpoints.rs")),
            ("signals", include_str!("signals.rs")),
            ("waits", include_str!("waits.rs")),
            ("events", include_str!("events.rs")),
            ("steps", include_str!("steps.rs")),
            ("images", include_str!("images.rs")),
            ("instances", include_str!("instances.rs")),
            ("metrics", include_str!("metrics.rs")),
            ("nodes", include_str!("nodes.rs")),
            ("liveness", include_str!("liveness.rs")),
            ("admission", include_str!("admission.rs")),
            ("bounds", include_str!("bounds.rs")),
            ("nudges", include_str!("nudges.rs")),
            ("removal", include_str!("removal.rs")),
            ("folding", include_str!("folding.rs")),
        ];
        for (module, source) in sources {
            let written: Vec<_> = source
                .lines()
                .filter_map(|line| line.strip_prefix("pub async fn "))
                .filter_map(|line| line.split('(').next())
                .collect();
            let named = CASES.iter().find(|(name, _)| *name == module);
            let named = named.map(|(_, cases)| cases.to_vec()).unwrap_or_default();
            assert_eq!(named, written, "{module}");
        }
        assert_eq!(CASES.len(), sources.len());
    }
}
