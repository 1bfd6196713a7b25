//! Containers that are made by shims, as a server has them made. This program plays the server: its `main` begins with
//! `shim::init_with()`, and it is executed again as launcher.
//!
//! They need root, runc and busybox-static, and say which package is missing.

#![expect(clippy::unwrap_used, reason = "all of this is tests")]

mod copies;
mod egress;
mod ending;
#[path = "../containers/image.rs"]
mod image;
mod limits;
mod network;
mod runner;
mod server;
mod stage;
mod starting;
mod world;

use libtest_mimic::{Arguments, Trial};

/// Names each test by its function.
macro_rules! trials {
    ($($module:ident: $($test:ident),+;)+) => {
        vec![$($(Trial::test(concat!(stringify!($module), "::", stringify!($test)), || {
            stage::play($module::$test());
            Ok(())
        })),+),+]
    };
}

/// As [`trials!`], of tests that are played on a host of their own.
macro_rules! trials_apart {
    ($module:ident: $($test:ident),+;) => {
        vec![$(Trial::test(concat!(stringify!($module), "::", stringify!($test)), || {
            world::play($module::$test);
            Ok(())
        })),+]
    };
}

fn main() {
    runtara_runner::shim::init_with(&runtara_runner_oci::shim::CONTAINERS);
    let mut trials = trials! {
        starting:
            output_and_exit_code_are_those_of_the_program,
            the_input_is_in_its_place,
            streams_are_opened_by_their_names,
            a_program_that_is_not_there_fails_for_good,
            a_layer_that_is_missing_fails_for_now,
            no_host_path_is_seen;
        ending:
            what_it_wrote_as_its_result_is_kept,
            a_result_that_is_no_file_is_not_kept,
            nothing_is_left_of_it,
            the_stop_signal_is_that_of_the_image,
            a_program_that_does_not_leave_is_killed,
            a_program_that_hears_nothing_is_not_waited_for,
            everything_in_it_ends_with_its_program,
            running_time_is_bounded,
            a_killed_shim_leaves_nothing_running,
            a_container_that_is_never_made_is_given_up,
            a_container_that_is_never_made_was_not_launched,
            running_time_begins_when_the_program_does,
            a_wish_is_heard_while_the_container_is_made;
        copies:
            a_copy_is_what_the_image_is,
            a_copy_is_written_to_within_its_limit,
            a_copy_counts_as_memory,
            a_copy_that_is_too_large_is_refused;
        limits:
            a_memory_kill_is_told_with_its_figures,
            a_child_that_is_killed_for_memory_is_told,
            too_many_processes_are_told,
            a_full_disk_is_told,
            what_was_not_met_is_not_told;
        network:
            the_core_is_reached_without_a_network,
            a_core_that_comes_late_is_waited_for;
        runner:
            a_program_runs_and_leaves_nothing,
            a_container_is_found_again_by_the_next_server,
            a_run_whose_shim_was_killed_leaves_nothing,
            what_a_killed_server_has_left_is_swept,
            each_container_has_user_ids_of_its_own,
            where_owners_cannot_be_shifted_all_have_the_same_ids,
            without_overlayfs_each_has_a_copy,
            what_is_not_allowed_is_refused_for_now,
            a_machine_without_runtime_says_what_to_install,
            a_program_that_needs_a_loader_needs_a_base,
            an_image_that_goes_takes_what_nobody_else_needs,
            what_a_forgotten_image_leaves_goes_with_the_next_server,
            a_whole_copy_of_an_image_goes_with_it,
            an_image_that_is_refused_leaves_no_layers,
            an_image_is_ready_at_once_for_the_next_server,
            layers_that_are_gone_are_unpacked_again,
            an_image_is_made_ready_once_however_many_ask,
            an_image_without_room_for_what_containers_need_is_refused,
            ids_of_runs_that_were_there_before_are_not_given_again;
    };
    trials.extend(trials_apart! {
        egress:
            slirp4netns_leads_out_and_nowhere_else,
            pasta_leads_out_and_nowhere_else,
            no_helper_of_an_ended_run_is_left,
            no_helper_of_a_killed_shim_is_left,
            a_program_goes_on_without_its_helper,
            a_helper_that_is_not_there_is_named,
            a_helper_that_fails_is_quoted;
    });
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
