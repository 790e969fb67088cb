"""What is said of a statement that did not come to its end."""

import logging
from collections.abc import Callable

import psycopg
import pytest
from django.db import Error, InternalError, connection, transaction

from jobs.models import Limit
from jobs.patience import is_away, may_pass, patiently, what_happened
from tests.jobs.connections import another_connection

pytestmark = pytest.mark.django_db(transaction=True)


def wait_for_a_lock() -> None:
    Limit.objects.create(pk="held")
    with another_connection() as other:
        with other.cursor() as cursor:
            cursor.execute("SELECT FROM jobs_limit WHERE key = 'held' FOR UPDATE")
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '10ms'")
            cursor.execute("SELECT FROM jobs_limit WHERE key = 'held' FOR UPDATE")


def take_too_long() -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = '10ms'")
        cursor.execute("SELECT pg_sleep(10)")


def write_where_nobody_may() -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL transaction_read_only = on")
        cursor.execute("DELETE FROM jobs_limit")


def lose_the_connection() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (wait_for_a_lock, "Somebody else has held a lock for too long"),
        (take_too_long, "A statement took longer than PostgreSQL's statement_timeout"),
        (write_where_nobody_may, "PostgreSQL takes no writes"),
        (lose_the_connection, "PostgreSQL does not answer"),
    ],
)
def test_the_log_says_whether_postgresql_is_away_or_has_ended_a_statement(act: Callable[[], None], words: str) -> None:
    with pytest.raises(Error) as raised:
        act()
    connection.close()
    assert what_happened(raised.value).startswith(f"{words} (")


def test_whoever_is_patient_says_why(caplog: pytest.LogCaptureFixture) -> None:
    def work(repeated: bool) -> bool:
        if not repeated:
            take_too_long()
        return repeated

    with caplog.at_level(logging.WARNING):
        assert patiently(work, seconds=5)
    assert "A statement took longer than PostgreSQL's statement_timeout" in caplog.text


def answer_twice() -> None:
    """As a pooler does that loses its server at a COMMIT."""
    with connection.wrap_database_errors:
        raise psycopg.InternalError("received 2 results from command 'COMMIT'")


def fail_in_a_failed_transaction() -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        with pytest.raises(Error):
            cursor.execute("SELECT 1 / 0")
        cursor.execute("SELECT 1")


@pytest.mark.parametrize(("act", "is_one"), [(answer_twice, True), (fail_in_a_failed_transaction, False)])
def test_an_answer_that_the_driver_makes_no_sense_of_is_an_outage(act: Callable[[], None], is_one: bool) -> None:
    with pytest.raises(InternalError) as raised:
        act()
    assert (is_away(raised.value), may_pass(raised.value)) == (is_one, is_one)
    calls = []

    def fail_once(repeated: bool) -> str:
        calls.append(repeated)
        if repeated:
            return "done"
        raise raised.value

    if is_one:
        assert patiently(fail_once, seconds=10) == "done"
    else:
        with pytest.raises(InternalError):
            patiently(fail_once, seconds=10)
    assert calls == [False, True][: 1 + is_one]
