//! Real processes, run by the runner as a server runs them. This program plays the server: its `main` begins with
//! `shim::init()`, and it is executed again as launcher.

#![expect(clippy::unwrap_used, reason = "all of this is tests")]

mod adoption;
mod cgroups;
mod ending;
mod isolation;
mod output;
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
    runtara_runner::shim::init();
    let trials = trials! {
        starting:
            the_exit_code_is_told,
            a_killing_signal_is_told,
            a_real_time_signal_is_told,
            a_program_gets_its_input_on_standard_input_and_in_a_file,
            arguments_reach_the_program,
            a_large_input_arrives_whole,
            what_cannot_be_executed_fails_for_good,
            an_executable_that_is_gone_must_be_prepared_again,
            two_hundred_runs_at_once_all_end,
            a_run_is_launched_once,
            runs_of_one_instance_share_nothing,
            cleaning_leaves_the_logs_and_then_nothing,
            a_run_that_lives_is_not_cleaned,
            usage_is_told_while_it_runs_and_afterwards;
        output:
            standard_output_is_the_result_of_a_program_without_another,
            the_output_file_wins_over_standard_output,
            a_failed_program_has_no_result,
            an_output_file_that_is_a_link_is_not_followed,
            too_much_output_is_no_result,
            logs_are_capped_and_keep_their_offsets,
            the_end_of_standard_error_is_kept,
            tokens_are_hidden_also_when_written_in_pieces,
            output_survives_a_directory_that_is_removed,
            a_full_disk_loses_output_and_not_the_exit,
            a_program_whose_output_was_lost_has_not_completed,
            a_result_in_its_file_outlives_what_could_not_be_printed;
        ending:
            the_deadline_ends_a_run,
            slept_time_moves_the_deadline,
            termination_asks_first_and_kills_later,
            termination_without_grace_kills_at_once,
            a_machine_that_goes_down_asks_no_program,
            a_program_that_ignores_the_request_is_killed_after_its_grace,
            a_program_may_leave_in_order_within_its_grace,
            a_shorter_grace_wins,
            a_request_right_after_the_launch_is_not_lost,
            ending_a_run_that_has_ended_does_nothing,
            what_has_left_the_session_is_ended_too,
            what_has_left_the_session_is_asked_too,
            a_descendant_of_many_generations_is_ended,
            a_program_that_flees_from_process_to_process_is_caught;
        cgroups:
            a_run_is_in_it_from_its_first_moment_and_it_goes_with_the_run,
            what_hides_is_ended_although_the_shim_was_killed,
            an_empty_one_that_was_left_is_swept,
            the_memory_of_all_its_processes_counts,
            a_run_without_memory_is_told_as_such,
            a_process_of_a_run_without_memory_is_named_beside_its_end;
        isolation:
            the_environment_is_the_contract_and_nothing_else,
            no_descriptor_is_inherited,
            signals_and_limits_are_as_for_a_fresh_process,
            configured_limits_hold,
            a_program_can_be_another_user,
            a_program_of_another_user_can_start_itself_again,
            a_script_can_be_another_user,
            a_run_keeps_its_user_when_the_server_gets_another;
        adoption:
            a_run_outlives_server_and_launcher,
            a_run_that_ended_meanwhile_is_told_as_it_ended,
            a_run_without_a_trace_is_gone_and_cannot_begin,
            a_run_whose_shim_was_killed_is_lost_with_all_its_processes,
            adopting_races_with_launching,
            a_dead_launcher_is_replaced;
    };
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
