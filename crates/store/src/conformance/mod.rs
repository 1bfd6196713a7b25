//! What every store must do, as tests that any store can run.
//!
//! A backend gives a [`Harness`] and writes `runtara_store::conformance_suite!(harness().await)`, which makes one test of each case. A
//! case is an ordinary function and can also be called alone. [`differential`] plays random histories on two stores and compares all
//! that they answer.

#![expect(clippy::unwrap_used, reason = "a case fails by panicking")]

use std::sync::Arc;

use async_trait::async_trait;

use crate::Store;

pub mod checkpoints;
pub mod claims;
pub mod starts;
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
        a_start_may_be_overdue,
        the_same_start_at_once_is_one_instance,
        an_unknown_instance_is_named_unknown,
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
            ("claims", include_str!("claims.rs")),
            ("checkpoints", include_str!("checkpoints.rs")),
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
