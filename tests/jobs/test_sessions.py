"""What a body does to its connection, in this process: what ends with it, and what ends an atomic task."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from typing import Any

import pytest
from celery import shared_task
from django.contrib.auth.models import Group
from django.db import connection, transaction

from jobs import fenced
from jobs.models import Job
from jobs.testing import run_due_jobs
from tests.sample_tasks import add

pytestmark = pytest.mark.django_db(transaction=True)

OF_THE_SESSION = [
    "SET statement_timeout = '1h'",
    "SELECT set_config('statement_timeout', '1h', false)",
    "LISTEN gossip",
    "CREATE TEMPORARY TABLE mine (id int)",
    "PREPARE plan AS SELECT 1",
    "DECLARE held CURSOR WITH HOLD FOR SELECT 1",
    "SELECT pg_advisory_lock(4711)",
]
OF_THE_TRANSACTION = [
    "SET LOCAL statement_timeout = '1h'",
    "SELECT set_config('statement_timeout', '1h', true)",
    "SELECT pg_advisory_xact_lock(4711)",
]


def executed(statement: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None


@shared_task(queue="default")
def executes(statement: str) -> int:
    """Returns the process of PostgreSQL that serves it."""
    with transaction.atomic():
        executed(statement)
    served_by: int = executed("SELECT pg_backend_pid()")
    return served_by


@shared_task(queue="default")
def answers(question: str) -> Any:
    return executed(question)


@shared_task(queue="default", atomic=True)
def answers_in_its_transaction(question: str) -> Any:
    return executed(question)


def results() -> list[Any]:
    return [job.result for job in run_due_jobs()]


@pytest.fixture
def connection_of_its_own() -> Iterator[None]:
    """The connection of this test is no other's."""
    connection.close()
    yield
    connection.close()


@pytest.mark.usefixtures("connection_of_its_own")
@pytest.mark.parametrize("statement", [*OF_THE_SESSION, *OF_THE_TRANSACTION])
def test_a_connection_is_closed_behind_a_body_that_has_changed_its_session_and_no_other(statement: str) -> None:
    add.delay(1, 2)
    for task, said in ((executes, statement), (executes, "SELECT 1"), (answers, "SELECT pg_backend_pid()")):
        task.delay(said)
    _, changed, next_one, last = results()
    assert (changed == next_one) == (statement in OF_THE_TRANSACTION)
    assert next_one == last


@pytest.fixture
def function() -> Iterator[Callable[[bool], None]]:
    """Makes a function of the database's own that sets something for its transaction alone, or for good."""

    def make(is_local: bool) -> None:
        executed(
            "CREATE OR REPLACE FUNCTION quietly() RETURNS text LANGUAGE sql AS "
            f"$$ SELECT set_config('application_name', 'left behind', {is_local}) $$"
        )

    connection.close()
    yield make
    executed("DROP FUNCTION quietly()")
    connection.close()


@pytest.mark.parametrize("is_local", [True, False])
def test_what_a_function_of_the_database_sets_is_not_noticed_and_ends_with_its_transaction_if_it_says_so(
    function: Callable[[bool], None], is_local: bool
) -> None:
    function(is_local)
    for question in ("SHOW application_name", "SELECT quietly()", "SHOW application_name"):
        answers.delay(question)
    before, changed, after = results()
    assert changed == "left behind"
    assert after == (before if is_local else "left behind")


# How the body of an atomic task ends the transaction around it.
ENDS: dict[str, Callable[[], Any]] = {
    "COMMIT": lambda: executed("COMMIT"),
    "in lower case, and more": lambda: executed("/* so */ commit; begin"),
    "END": lambda: executed("END"),
    "ROLLBACK": lambda: executed("ROLLBACK"),
    "below Django": lambda: connection.connection.execute("COMMIT"),
    "by psycopg": lambda: connection.connection.commit(),
    "back by psycopg": lambda: connection.connection.rollback(),
}


@shared_task(queue="default", atomic=True)
def ends_its_transaction(how: str, is_swallowed: bool) -> None:
    Group.objects.create(name="before")
    with suppress(Exception) if is_swallowed else nullcontext():
        ENDS[how]()
    Group.objects.create(name="after")


@pytest.mark.parametrize("is_swallowed", [False, True])
@pytest.mark.parametrize("how", ENDS)
def test_an_atomic_task_whose_body_ends_its_transaction_fails_with_nothing_kept(how: str, is_swallowed: bool) -> None:
    ends_its_transaction.delay(how, is_swallowed)
    add.delay(1, 2)
    run_due_jobs()
    job = Job.objects.get(task=ends_its_transaction.name)
    assert (job.state, job.attempt, job.stalled_count) == ("failed", 1, 0)
    assert "has tried to end the transaction around it" in job.error
    assert not Group.objects.exists()
    assert Job.objects.get(task=add.name).result == 3


@shared_task(queue="default")
def ends_its_fence(how: str) -> None:
    with fenced():
        Group.objects.create(name="before")
        ENDS[how]()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE FUNCTION pg_temp.answer() RETURNS int BEGIN ATOMIC SELECT 1; SELECT CASE WHEN true THEN 2 END; END",
        'SELECT 1 AS "an; END"',
        r"SELECT E'it\'s; COMMIT'",
        "/* /* */; COMMIT */ SELECT 1",
    ],
    ids=["function", "name", "text", "comment"],
)
def test_what_only_reads_like_the_end_of_a_transaction_ends_none(statement: str) -> None:
    answers_in_its_transaction.delay(statement)
    (job,) = run_due_jobs()
    assert (job.state, job.error) == ("completed", "")


@pytest.mark.parametrize(
    "statement",
    [
        """SELECT 1 AS "it's"; COMMIT; SELECT 'x'""",
        """SELECT 1 AS "1""'"; COMMIT; SELECT 'x'""",
        'SELECT 1 AS "CREATE FUNCTION BEGIN ATOMIC"; COMMIT; END',
        "SELECT begin atomic FROM (SELECT 1 AS begin) AS one; COMMIT; END",
        "CREATE FUNCTION pg_temp.answer() RETURNS int BEGIN ATOMIC SELECT 1; END; COMMIT",
        "/* /* */ */ COMMIT",
        "SELECT 1 AS a$$; COMMIT; SELECT 2 AS b$$",
    ],
    ids=["quote", "two", "name", "column", "function", "comment", "dollars"],
)
def test_the_end_of_a_transaction_is_seen_behind_what_hides_it(statement: str) -> None:
    answers_in_its_transaction.delay(statement)
    (job,) = run_due_jobs()
    assert job.state == "failed"
    assert "tried to end the transaction" in job.error


@pytest.mark.parametrize("how", ENDS)
def test_a_fenced_block_that_ends_its_transaction_is_rolled_back(how: str) -> None:
    ends_its_fence.delay(how)
    run_due_jobs()
    job = Job.objects.get()
    assert job.state == "failed"
    assert "has tried to end the transaction around it" in job.error
    assert not Group.objects.exists()


@shared_task(queue="default", atomic=True)
def ends_its_transaction_behind_a_fence() -> None:
    with fenced():
        Group.objects.create(name="before")
    executed("COMMIT")


def test_an_atomic_task_is_guarded_behind_its_fenced_blocks_too() -> None:
    ends_its_transaction_behind_a_fence.delay()
    run_due_jobs()
    assert Job.objects.get().state == "failed"
    assert not Group.objects.exists()
