//! Containers that are made by shims, as a server has them made. This program plays the server: its `main` begins with
//! `shim::init_with()`, and it is executed again as launcher.
//!
//! They need root, runc and busybox-static, and say which package is missing.

#![expect(clippy::unwrap_used, reason = "all of this is tests")]

mod ending;
#[path = "../containers/image.rs"]
#[expect(dead_code, reason = "the other tests compile programs, too")]
mod image;
mod network;
mod runner;
mod server;
mod stage;
mod starting;

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

fn main() {
    runtara_runner::shim::init_with(&runtara_runner_oci::shim::CONTAINERS);
    let trials = trials! {
        starting:
            output_and_exit_code_are_those_of_the_program,
            the_input_is_in_its_place,
            a_program_that_is_not_there_fails_for_good,
            a_layer_that_is_missing_fails_for_now,
            no_host_path_is_seen;
        ending:
            what_it_wrote_as_its_result_is_kept,
            a_result_that_is_no_file_is_not_kept,
            nothing_is_left_of_it,
            the_stop_signal_is_that_of_the_image,
            a_program_that_does_not_leave_is_killed,
            everything_in_it_ends_with_its_program,
            running_time_is_bounded,
            too_much_memory_is_told,
            a_killed_shim_leaves_nothing_running;
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
            what_is_not_allowed_is_refused_for_good,
            a_machine_without_runtime_says_what_to_install,
            a_program_that_needs_a_loader_needs_a_base,
            an_image_that_goes_takes_what_nobody_else_needs,
            an_image_is_ready_at_once_for_the_next_server,
            layers_that_are_gone_are_unpacked_again;
    };
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
