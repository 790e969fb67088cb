"""What is said of a statement that did not come to its end."""

import logging
from collections.abc import Callable

import pytest
from django.db import Error, connection, transaction

from jobs.models import Limit
from jobs.patience import patiently, what_happened
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
