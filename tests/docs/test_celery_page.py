"""`docs/celery.md`: each of its statements is shown by tests, in the order of its sentences."""

from tests.docs.shown import Shown, in_file, unknown_tests, without_a_test, wrong_phrases

PAGE = "docs/celery.md"
SHOWN: Shown = {
    "work as Celery's user guide says": [
        *in_file(
            "tests/jobs/test_celery_api.py",
            "test_a_task_has_the_name_that_it_was_given_and_is_called_by_it",
            "test_a_group_is_so_many_jobs_with_one_result",
            "test_a_chain_may_end_in_a_group",
            "test_map_starmap_and_chunks_are_jobs",
        ),
        *in_file(
            "tests/jobs/test_celery_compatibility.py",
            "test_results_states_and_errors_are_celerys",
            "test_links_and_errbacks_follow",
        ),
    ],
    # -- Calling
    "A message holds no arguments": [
        *in_file(
            "tests/guarantees/test_g02_the_broker_may_be_away.py",
            "test_redis_holds_neither_arguments_nor_names_of_jobs",
        ),
        *in_file("tests/jobs/test_celery_api.py", "test_an_edited_job_runs_what_its_row_says"),
    ],
    "`countdown`, `eta` and `expires` are kept by the database": [
        *in_file(
            "tests/guarantees/test_g07_delays_and_retries_are_in_the_database.py",
            "test_a_delayed_job_and_a_retry_fire_once_after_a_restart_of_everything",
        ),
        *in_file(
            "tests/jobs/test_celery_api.py",
            "test_a_job_may_lie_for_a_month_and_expires_where_it_lies",
            "test_a_job_that_expired_is_revoked",
        ),
    ],
    "Calls never raise because Redis is away": [
        *in_file(
            "tests/guarantees/test_g02_the_broker_may_be_away.py",
            "test_jobs_enqueued_while_redis_is_down_run_when_it_is_back",
        ),
        *in_file(
            "tests/jobs/test_enqueue.py",
            "test_what_says_how_a_message_is_to_travel_means_nothing",
            "test_a_wrong_call_is_refused_in_words_before_anything_is_written",
        ),
    ],
    "`priority` is 0 to 9": [
        *in_file(
            "tests/jobs/test_options.py", "test_what_could_not_be_kept_is_refused_in_words_and_nothing_is_written"
        ),
        *in_file(
            "tests/guarantees/test_g17_the_length_of_a_backlog_costs_nothing.py",
            "test_jobs_start_in_the_order_of_their_priority_and_of_their_time",
        ),
    ],
    "A `task_id` must be a UUID": in_file(
        "tests/jobs/test_enqueue.py",
        "test_a_wrong_call_is_refused_in_words_before_anything_is_written",
    ),
    "`before_task_publish` and `after_task_publish`": in_file(
        "tests/jobs/test_celery_api.py",
        "test_no_signal_tells_of_a_message_where_a_job_is_enqueued",
    ),
    "Stamps are kept as headers": [
        *in_file("tests/jobs/test_celery_api.py", "test_stamps_are_headers_of_their_job"),
        *in_file("tests/jobs/test_stamps.py", "test_jobs_are_revoked_by_their_stamps"),
        *in_file(
            "tests/integration/test_worker_commands.py",
            "test_a_command_to_revoke_by_stamps_cancels_what_has_them_and_no_neighbour",
        ),
    ],
    "in an event loop is refused": in_file(
        "tests/jobs/test_callers.py",
        "test_a_blocking_call_in_an_event_loop_is_refused_and_names_the_other_way",
        "test_a_job_that_would_outlive_the_callers_rollback_on_another_database_is_refused",
    ),
    # -- Canvas
    "and the steps of a `chain`, are written in the transaction": [
        *in_file(
            "tests/jobs/test_follow_ups.py",
            "test_what_follows_a_job_is_written_in_the_transaction_that_completes_it",
            "test_the_rest_of_a_chain_is_cancelled_however_a_step_ends_badly",
        ),
        *in_file(
            "tests/jobs/test_canvas.py",
            "test_celery_itself_leaves_the_rest_of_a_chain_pending_where_a_step_is_ignored_or_revoked",
        ),
    ],
    "A group or a chord is enqueued in one transaction": in_file(
        "tests/jobs/test_canvas.py",
        "test_of_a_canvas_with_a_wrong_member_nothing_is_written",
        "test_groups_inside_of_a_group_keep_their_order",
    ),
    "**Chords are [flows]": [
        *in_file(
            "tests/integration/test_flows.py",
            "test_what_follows_comes_once_wherever_a_run_dies",
            "test_parts_that_are_granted_several_times_count_once",
        ),
        *in_file(
            "tests/jobs/test_flows.py",
            "test_a_failed_part_fails_the_body_when_all_have_ended",
            "test_the_parts_of_a_chord_may_be_delayed_and_their_results_are_kept_whatever_their_task_says",
            "test_a_result_of_celerys_kind_knows_the_parts",
        ),
        *in_file(
            "tests/jobs/test_canvas.py",
            "test_the_options_of_a_chord_that_speak_of_polling_mean_nothing",
        ),
    ],
    "`task.chunks(…)` may stand wherever a group may": [
        *in_file("tests/jobs/test_flows.py", "test_a_canvas_ends_with_its_results_in_order"),
        *in_file("tests/jobs/test_celery_api.py", "test_map_starmap_and_chunks_are_jobs"),
    ],
    "`self.replace(…)` by one task": [
        *in_file(
            "tests/jobs/test_replacing.py",
            "test_a_job_keeps_to_the_limits_and_the_queue_of_what_it_has_become",
            "test_a_job_that_is_replaced_at_once_cannot_be_told_to_wait",
            "test_a_job_that_goes_on_as_a_canvas_is_held_until_that_has_ended",
        ),
        *in_file("tests/jobs/test_canvas.py", "test_a_job_that_goes_on_as_a_chain_fails_as_that_did"),
    ],
    "A child of `fan_out` may have no `dedup_key`": [
        *in_file(
            "tests/jobs/test_flows_with_dedup_keys.py",
            "test_a_child_may_have_no_key_and_a_part_of_a_chord_one_that_is_free",
        ),
        *in_file("tests/jobs/test_canvas.py", "test_a_chord_with_a_task_that_is_no_job_is_refused"),
    ],
    "that ends in a group gives one result": in_file(
        "tests/jobs/test_flows.py",
        "test_a_canvas_ends_with_its_results_in_order",
    ),
    "Headers of a call": [
        *in_file("tests/jobs/test_celery_api.py", "test_a_request_knows_its_run_and_its_callers_headers"),
        *in_file(
            "tests/integration/test_deaths_in_the_pool.py",
            "test_headers_of_a_caller_that_are_named_as_others_own_keep_no_job_from_running",
        ),
    ],
    # -- In a task
    "`task_prerun` sees empty arguments": in_file(
        "tests/jobs/test_celery_tasks.py",
        "test_the_signal_before_a_run_sees_no_arguments_and_all_that_come_after_it_see_those_of_the_row",
    ),
    "every other exception in a body are the failure": [
        *in_file(
            "tests/guarantees/test_g19_a_body_stays_its_own.py",
            "test_whatever_a_body_raises_is_the_failure_of_its_job_at_once",
        ),
        *in_file(
            "tests/jobs/test_declared.py",
            "test_a_task_that_retries_every_exception_retries_those_that_derive_from_it_and_nothing_permanent",
        ),
    ],
    "What a class of tasks writes in `__call__`": [
        *in_file(
            "tests/integration/test_deaths_in_the_pool.py",
            "test_wherever_and_however_a_pool_process_ends_its_job_ends_once_and_its_neighbour_runs_on",
        ),
        *in_file(
            "tests/guarantees/test_g19_a_body_stays_its_own.py",
            "test_no_base_class_switches_off_what_the_ledger_does_around_a_body",
        ),
    ],
    "`self.request` holds what a run needs": [
        *in_file(
            "tests/jobs/test_celery_tasks.py",
            "test_a_run_knows_itself_and_its_group_and_nothing_of_what_comes_after_it",
        ),
        *in_file(
            "tests/jobs/test_celery_api.py",
            "test_a_request_knows_when_it_was_due_where_that_was_later_than_its_call",
        ),
    ],
    "Of `self.retry(…)` count": [
        *in_file(
            "tests/jobs/test_celery_tasks.py",
            "test_a_retry_may_say_a_moment_a_reason_and_how_often_and_need_not_raise",
            "test_whatever_else_a_retry_says_stays_as_it_was_called",
        ),
        *in_file(
            "tests/jobs/test_celery_api.py",
            "test_a_retry_moves_a_job_in_time_and_changes_its_arguments_and_nothing_else",
        ),
        *in_file("tests/jobs/test_replacing.py", "test_a_retry_with_other_arguments_keeps_to_their_limits"),
        *in_file(
            "tests/guarantees/test_g07_delays_and_retries_are_in_the_database.py",
            "test_a_retry_inside_a_transaction_is_not_rolled_back_with_it",
        ),
    ],
    "that a task does not declare are its queue's": [
        *in_file(
            "tests/jobs/test_enqueue.py",
            "test_attempts_come_from_the_call_then_the_task_then_the_queue",
            "test_time_limits_come_from_the_call_then_the_queue",
        ),
        *in_file(
            "tests/jobs/test_declared.py",
            "test_a_retry_waits_as_its_task_says_and_else_as_its_queue_does",
            "test_waits_vary_only_where_a_task_asks_for_it",
            "test_a_task_that_retries_every_exception_retries_those_that_derive_from_it_and_nothing_permanent",
        ),
        *in_file(
            "tests/jobs/test_celery_compatibility.py",
            "test_a_task_that_retries_by_itself_is_retried_after_a_hard_time_limit_too",
        ),
        *in_file("tests/jobs/test_celery_api.py", "test_an_exception_that_is_not_to_be_retried_fails_at_once"),
    ],
    "`Ignore` in a task completes its job": [
        *in_file("tests/jobs/test_celery_compatibility.py", "test_what_a_body_may_raise_ends_its_job"),
        *in_file(
            "tests/jobs/test_redelivered.py",
            "test_only_a_rejected_run_comes_again",
            "test_a_run_that_comes_after_one_that_was_cut_off_is_told",
        ),
    ],
    "`MemoryError` in a task": in_file(
        "tests/jobs/test_celery_compatibility.py",
        "test_what_a_body_may_raise_ends_its_job",
    ),
    "`on_failure` is not called for jobs that were lost": [
        *in_file(
            "tests/jobs/test_celery_compatibility.py",
            "test_the_handler_for_failures_is_not_called_for_a_job_that_was_lost_with_its_process",
        ),
        *in_file("tests/jobs/test_signals.py", "test_each_end_of_a_run_is_told_once_whoever_wrote_it"),
    ],
    "`acks_late`, `acks_on_failure_or_timeout`": [
        *in_file(
            "tests/jobs/test_celery_compatibility.py",
            "test_what_a_task_says_of_its_message_changes_nothing",
        ),
        *in_file("tests/jobs/test_enqueue.py", "test_a_job_is_acknowledged_at_its_end_whatever_a_task_declares"),
    ],
    "Workers run with `--pool=prefork`": [
        *in_file("tests/jobs/test_pool.py", "test_pools_of_processes_and_threads_are_taken_and_others_refused"),
        *in_file(
            "tests/guarantees/test_g19_a_body_stays_its_own.py",
            "test_a_pool_of_greenlets_is_refused_at_the_start",
        ),
    ],
    "`rate_limit`, which in Celery is each worker's own": [
        *in_file(
            "tests/guarantees/test_g11_limits_are_global.py",
            "test_two_hundred_jobs_at_ten_a_second_take_no_less_than_nineteen_seconds_on_two_workers",
        ),
        *in_file(
            "tests/jobs/test_own_limits.py",
            "test_a_limit_without_a_key_holds_for_all_jobs_of_the_task",
            "test_the_rate_that_a_project_sets_for_all_of_its_tasks_is_one_for_each_of_them",
        ),
        *in_file("tests/jobs/test_defaults.py", "test_a_setting_of_celerys_that_the_ledger_relies_on_is_held"),
        *in_file(
            "tests/integration/test_worker_commands.py",
            "test_commands_that_would_change_limits_of_a_task_in_one_worker_are_refused",
        ),
    ],
    "A task whose `base=` does not derive": in_file(
        "tests/jobs/test_celery_api.py",
        "test_a_task_with_a_foreign_base_class_stays_plain_celery",
        "test_a_shared_task_of_a_third_party_is_a_job_of_the_default_queue",
    ),
    # -- Results
    "`AsyncResult.state` follows the job": [
        *in_file(
            "tests/jobs/test_celery_compatibility.py",
            "test_results_states_and_errors_are_celerys",
            "test_a_custom_state_is_seen_while_the_job_runs",
            "test_revoking_cancels_in_the_ledger_and_forgets_nothing",
        ),
        *in_file(
            "tests/jobs/test_celery_api.py",
            "test_a_retry_of_a_task_that_ignores_its_result_is_written",
            "test_a_job_that_runs_has_started",
            "test_what_no_job_has_as_its_id_is_pending",
        ),
    ],
    "Results do not expire by themselves": [
        *in_file(
            "tests/jobs/test_celery_api.py",
            "test_a_result_does_not_expire_by_itself_and_knows_no_other_job",
            "test_a_task_id_of_the_caller_finds_the_result",
            "test_a_call_that_wants_no_result_has_a_state_and_an_error_all_the_same",
        ),
        *in_file("tests/jobs/test_retention.py", "test_whoever_waits_for_a_result_has_an_hour_to_fetch_it"),
    ],
    "`get()` asks the database": [
        *in_file(
            "tests/jobs/test_celery_api.py",
            "test_whoever_waits_for_a_result_asks_soon_at_first_and_then_more_and_more_seldom",
        ),
        *in_file("tests/jobs/test_large_canvases.py", "test_get_reads_the_results_of_many_jobs_together"),
        *in_file(
            "tests/jobs/test_callers.py",
            "test_whoever_waits_in_the_transaction_of_a_job_is_told_so_at_once",
            "test_a_view_that_waits_for_a_job_of_its_own_transaction_is_told_so_at_once",
        ),
        *in_file(
            "tests/jobs/test_celery_api.py",
            "test_a_result_does_not_expire_by_itself_and_knows_no_other_job",
        ),
    ],
    "`revoke()` cancels the job in the ledger": [
        *in_file(
            "tests/jobs/test_celery_compatibility.py",
            "test_revoking_cancels_in_the_ledger_and_forgets_nothing",
        ),
        *in_file(
            "tests/jobs/test_monitoring.py",
            "test_monitors_see_a_run_that_was_told_of_its_revocation_as_failed_and_one_that_was_ended_as_revoked",
        ),
        *in_file(
            "tests/guarantees/test_g12_operator_actions_are_durable.py",
            "test_a_running_job_that_asks_is_told_and_stops_by_itself",
            "test_the_process_of_a_cancelled_job_that_goes_on_is_ended_and_its_neighbours_is_not",
        ),
    ],
    "Calling a task like a function": [
        *in_file("tests/jobs/test_enqueue.py", "test_a_direct_call_and_an_eager_one_touch_no_ledger"),
        *in_file("tests/jobs/test_celery_api.py", "test_where_all_is_eager_nothing_is_a_job"),
    ],
    # -- Beat
    "Schedules are read from the tables at each look": in_file(
        "tests/jobs/test_scheduler.py",
        "test_an_edit_is_seen_at_the_next_look_though_nobody_has_notified_beat",
        "test_when_a_schedule_ran_last_decides_nothing",
        "test_a_crontab_that_was_missed_runs_at_the_next_look_whatever_celerys_settings_say",
        "test_whoever_asks_for_longer_pauses_does_not_get_them",
    ),
    "A schedule that cannot run stays enabled": in_file(
        "tests/jobs/test_scheduler.py",
        "test_a_schedule_that_cannot_tick_is_reported_and_the_others_tick",
        "test_a_broken_schedule_is_reported_and_the_others_tick",
        "test_a_schedule_that_django_celery_beat_disables_ignores_or_dies_of_stays_and_is_reported",
    ),
    "After downtime nothing runs early": [
        *in_file(
            "tests/jobs/test_scheduler.py",
            "test_when_a_schedule_ran_last_decides_nothing",
            "test_a_crontab_that_was_missed_runs_at_the_next_look_whatever_celerys_settings_say",
        ),
        *in_file(
            "tests/jobs/cron/test_ticks.py",
            "test_a_moment_that_had_passed_when_its_schedule_was_made_is_seen_to_be_skipped",
            "test_a_moment_that_passes_while_no_beat_runs_is_made_up_for_as_any_tick",
        ),
    ],
    # -- Workers
    "Celery's `purge` removes": [
        *in_file(
            "tests/jobs/test_celery_api.py",
            "test_a_purge_removes_messages_of_other_producers_and_no_jobs",
            "test_celery_call_enqueues_a_task_of_the_project",
        ),
        *in_file(
            "tests/integration/test_worker_commands.py",
            "test_workers_show_arguments_shortened_and_without_secrets_and_nothing_as_scheduled",
        ),
        *in_file(
            "tests/jobs/test_celery_tasks.py",
            "test_the_signal_before_a_run_sees_no_arguments_and_all_that_come_after_it_see_those_of_the_row",
        ),
        *in_file(
            "tests/guarantees/test_g05_delivered_often_run_once.py",
            "test_a_message_of_another_producer_becomes_a_job_once",
        ),
    ],
    "Prefetching more than one message per slot": in_file(
        "tests/jobs/test_defaults.py",
        "test_a_setting_of_celerys_that_the_ledger_relies_on_is_held",
        "test_hints_that_would_be_elsewhere_are_refused_at_the_start",
    ),
}


def test_every_statement_of_the_page_is_shown_by_a_test() -> None:
    assert without_a_test(PAGE, SHOWN) == []


def test_whatever_is_shown_is_a_statement_of_the_page() -> None:
    assert wrong_phrases(PAGE, SHOWN) == {}


def test_the_tests_that_show_it_are_there() -> None:
    assert unknown_tests(SHOWN) == []
