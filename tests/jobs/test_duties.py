"""The duties of a round: none of them stops the others, unless PostgreSQL itself is away."""

from datetime import timedelta

import pytest
from django.db import OperationalError, connection, connections
from django.utils import timezone

from devstack.throwaway import Server
from jobs.dispatcher import leader
from jobs.dispatcher.thread import DispatcherThread, Duty, seldom
from jobs.models import JobEvent, Worker
from tests.jobs.factories import make_worker

done: list[str] = []


def succeed() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    done.append("succeeded")


def have_a_bug() -> None:
    raise ZeroDivisionError


def lose_the_connection() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


def fail_in_sql() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 / 0")


@pytest.fixture
def dispatcher(monkeypatch: pytest.MonkeyPatch) -> DispatcherThread:
    monkeypatch.setattr(leader, "hold", lambda: True)
    done.clear()
    return DispatcherThread()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("first", [have_a_bug, lose_the_connection, fail_in_sql])
def test_a_duty_that_fails_does_not_stop_those_after_it(dispatcher: DispatcherThread, first: Duty) -> None:
    dispatcher.own, dispatcher.leading = [first, succeed], [first, succeed]
    dispatcher.run_once()
    assert done == ["succeeded", "succeeded"]


@pytest.mark.django_db(transaction=True)
def test_without_postgresql_the_round_is_over(dispatcher: DispatcherThread, postgres_server: Server) -> None:
    tried: list[str] = []

    def ask() -> None:
        tried.append("asked")
        succeed()

    dispatcher.own = [ask, ask, ask]
    postgres_server.stop()
    with pytest.raises(OperationalError):
        dispatcher.run_once()
    assert tried == ["asked"]
    postgres_server.start()
    connections.close_all()
    dispatcher.run_once()
    assert tried == ["asked"] * 4


@pytest.mark.django_db(transaction=True)
def test_statistics_and_retention_are_duties_of_the_leader(
    dispatcher: DispatcherThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    JobEvent.objects.create(queue="default", task="t", kind="completed")
    make_worker(dead_at=timezone.now() - timedelta(days=2))
    monkeypatch.setattr(leader, "hold", lambda: False)
    dispatcher.run_once()
    assert JobEvent.objects.exists()
    assert Worker.objects.exists()
    monkeypatch.setattr(leader, "hold", lambda: True)
    # As if the time had come to ask for the lease again.
    dispatcher._hold_at = 0.0
    dispatcher.run_once()
    assert not JobEvent.objects.exists()
    assert not Worker.objects.exists()


def test_a_seldom_duty_comes_again_at_once_only_while_more_is_left() -> None:
    left = [True, True, False, True]
    look = seldom(lambda: left.pop(0), seconds=3600)
    for _ in range(5):
        look()
    assert left == [True]


def test_a_seldom_duty_that_fails_has_to_wait() -> None:
    tries = []

    def fail() -> bool:
        tries.append(1)
        raise ValueError("odd")

    look = seldom(fail, seconds=3600)
    with pytest.raises(ValueError, match="odd"):
        look()
    look()
    assert len(tries) == 1
