"""The duties of a round: none of them stops the others, unless PostgreSQL itself is away."""

from datetime import timedelta
from threading import Event

import pytest
from django.db import OperationalError, connection, connections
from django.utils import timezone

from devstack.throwaway import Server
from jobs.dispatcher import leader
from jobs.dispatcher.thread import DispatcherThread, Duty, seldom
from jobs.models import JobEvent, Worker
from tests.jobs.factories import make_worker
from tests.waiting import wait_until

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
    monkeypatch.setattr(leader, "hold", lambda **_: True)
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
    monkeypatch.setattr(leader, "hold", lambda **_: False)
    dispatcher.run_once()
    dispatcher.slow.run_once()
    assert JobEvent.objects.exists()
    assert Worker.objects.exists()
    monkeypatch.setattr(leader, "hold", lambda **_: True)
    # As if the time had come to ask for the lease again.
    dispatcher._hold_at = 0.0
    dispatcher.run_once()
    dispatcher.slow.run_once()
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


def test_a_seldom_duty_that_takes_its_time_comes_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("jobs.dispatcher.thread.time.monotonic", lambda: clock[0])

    def work() -> None:
        clock[0] += 1.0

    look = seldom(work, seconds=2)
    assert look() is True
    clock[0] = 20.9
    assert look() is False
    clock[0] = 21.1
    assert look() is True


@pytest.mark.django_db(transaction=True)
def test_what_takes_its_time_keeps_nothing_urgent_waiting(dispatcher: DispatcherThread) -> None:
    begun, let_go = Event(), Event()

    def hang() -> None:
        begun.set()
        let_go.wait(60)

    dispatcher.own, dispatcher.leading, dispatcher.slow.duties = [], [succeed], [hang]
    threads = [dispatcher, dispatcher.slow]
    for one in threads:
        one.start()
    try:
        assert begun.wait(30)
        before = len(done)
        wait_until(lambda: len(done) >= before + 3)
    finally:
        let_go.set()
        for one in threads:
            one.stop()
            one.join()
