"""`docs/task_bodies.md`: each of its statements is shown by tests, in the order of its sentences."""

from tests.docs.shown import Shown, in_file, unknown_tests, without_a_test, wrong_phrases

PAGE = "docs/task_bodies.md"
G19 = "tests/guarantees/test_g19_a_body_stays_its_own.py"
SHOWN: Shown = {
    "Whatever it likes": in_file(
        G19,
        "test_what_a_body_leaves_on_its_connection_reaches_neither_its_end_nor_the_next_body",
        "test_what_a_body_changes_in_its_process_is_set_back",
    ),
    "A transaction that is open when the body returns": in_file(
        G19,
        "test_what_a_body_leaves_on_its_connection_reaches_neither_its_end_nor_the_next_body",
    ),
    "temporary tables, `PREPARE`": [
        *in_file(G19, "test_what_a_body_leaves_on_its_connection_reaches_neither_its_end_nor_the_next_body"),
        *in_file(
            "tests/jobs/test_sessions.py",
            "test_a_connection_is_closed_behind_a_body_that_has_changed_its_session_and_no_other",
            "test_what_a_function_of_the_database_sets_is_not_noticed_and_ends_with_its_transaction_if_it_says_so",
        ),
    ],
    "The body of a task with `atomic=True`": [
        *in_file(
            G19,
            "test_an_atomic_task_whose_connection_does_not_outlive_its_body_comes_to_an_end",
            "test_what_the_body_of_an_atomic_task_leaves_is_whole_or_nothing",
        ),
        *in_file(
            "tests/jobs/test_sessions.py",
            "test_an_atomic_task_whose_body_ends_its_transaction_fails_with_nothing_kept",
        ),
    ],
    "`sys.exit()`, `KeyboardInterrupt` and the like": [
        *in_file(G19, "test_whatever_a_body_raises_is_the_failure_of_its_job_at_once"),
        *in_file(
            "tests/integration/test_deaths_in_the_pool.py",
            "test_wherever_and_however_a_pool_process_ends_its_job_ends_once_and_its_neighbour_runs_on",
        ),
    ],
    "Language, time zone, signal handlers": in_file(
        G19,
        "test_what_a_body_changes_in_its_process_is_set_back",
        "test_what_is_not_set_back_goes_with_its_process",
    ),
    "A task that forks by `multiprocessing`": [
        *in_file(
            G19,
            "test_a_body_that_forks_by_multiprocessing_needs_a_pool_of_threads",
            "test_a_pool_of_greenlets_is_refused_at_the_start",
        ),
        *in_file("tests/jobs/test_pool.py", "test_pools_of_processes_and_threads_are_taken_and_others_refused"),
    ],
}


def test_every_statement_of_the_page_is_shown_by_a_test() -> None:
    assert without_a_test(PAGE, SHOWN) == []


def test_whatever_is_shown_is_a_statement_of_the_page() -> None:
    assert wrong_phrases(PAGE, SHOWN) == {}


def test_the_tests_that_show_it_are_there() -> None:
    assert unknown_tests(SHOWN) == []
