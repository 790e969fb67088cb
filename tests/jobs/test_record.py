"""Health comes of what succeeds: a leader whose duties fail says so."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db.models.functions import Now

from jobs import health, selectors
from jobs.dispatcher import leader, record
from jobs.dispatcher.due import Due
from jobs.dispatcher.prompt import PromptThread
from jobs.dispatcher.record import Record
from jobs.dispatcher.thread import DispatcherThread, seldom
from jobs.models import Duty
from jobs.worker import identity

pytestmark = pytest.mark.django_db(transaction=True)
MINUTES = timedelta(minutes=2)


def work() -> None:
    """Nothing is wrong."""


def fail() -> None:
    raise ZeroDivisionError("of a person's secret")


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., DispatcherThread]]:
    """So many rounds of a leader with these duties."""
    for name in ("_WRITE_SECONDS", "_FAILURE_SECONDS"):
        monkeypatch.setattr(record, name, 0.0)
    monkeypatch.setattr(leader, "hold_seconds", lambda: 0.0)

    def turn(*duties: Any, count: int = 3) -> DispatcherThread:
        dispatcher = DispatcherThread()
        dispatcher.own, dispatcher.leading = [], list(duties)
        for _ in range(count):
            dispatcher.run_once()
        return dispatcher

    with identity.assumed(uuid4()):
        yield turn


def test_a_dispatcher_ticks_by_what_it_has_done(rounds: Callable[..., DispatcherThread]) -> None:
    rounds(fail)
    assert selectors.tick_ages_seconds()["dispatcher"] is None
    rounds(fail, work)
    assert selectors.tick_ages_seconds()["dispatcher"] is not None


def test_each_duty_says_when_it_last_succeeded_and_what_it_last_raised(
    rounds: Callable[..., DispatcherThread],
) -> None:
    rounds(seldom(work, seconds=600), fail)
    good, bad = Duty.objects.filter(every_seconds__isnull=False).order_by("-every_seconds")
    assert (good.name, good.every_seconds, good.failed_at) == ("test_record.work", 600, None)
    assert good.succeeded_at is not None
    assert (bad.name, bad.succeeded_at) == ("test_record.fail", None)
    assert bad.error == "ZeroDivisionError: of a person's secret"


def test_a_duty_that_was_not_due_has_not_succeeded(rounds: Callable[..., DispatcherThread]) -> None:
    rounds(lambda: False)
    assert not Duty.objects.filter(every_seconds__isnull=False).exists()


def test_duties_of_an_earlier_version_are_forgotten(rounds: Callable[..., DispatcherThread]) -> None:
    Duty.objects.create(name="of.yesterday", every_seconds=1, succeeded_at=Now() - MINUTES)
    dispatcher = DispatcherThread()
    dispatcher.record.succeeded("rescue.Rescuer", every_seconds=1)
    dispatcher.record.write()
    assert [duty.name for duty in Duty.objects.all()] == ["rescue.Rescuer"]


def reasons() -> list[str]:
    for name in health.DUTIES:
        Duty.objects.update_or_create(name=name, defaults={"ticked_at": Now()})
    return health.check().reasons


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"succeeded_at": Now(), "every_seconds": 1}, None),
        ({"succeeded_at": Now() - MINUTES, "every_seconds": 1}, "last succeeded 120 s ago"),
        ({"succeeded_at": Now() - MINUTES, "every_seconds": 600}, None),
        ({"succeeded_at": Now() - MINUTES, "failed_at": Now(), "error": "E: x", "every_seconds": 600}, "(E: see"),
        ({"succeeded_at": Now() - MINUTES / 4, "failed_at": Now(), "error": "E: x", "every_seconds": 1}, None),
        ({"failed_at": Now(), "error": "E: a person's secret", "every_seconds": 1}, "has never succeeded (E: see"),
    ],
)
def test_health_says_which_duty_does_not_succeed_and_nothing_of_what_was_raised(
    fields: dict[str, Any], told: str | None
) -> None:
    Duty.objects.create(name="retention", **fields)
    found = reasons()
    assert len(found) == (0 if told is None else 1)
    if told is not None:
        assert found[0].startswith("The dispatcher's duty retention ")
        assert told in found[0]
        assert "secret" not in found[0]


def test_where_nobody_leads_only_that_is_said() -> None:
    Duty.objects.create(name="retention", succeeded_at=Now() - MINUTES, every_seconds=1)
    Duty.objects.create(name="beat", ticked_at=Now())
    Duty.objects.create(name="dispatcher", ticked_at=Now() - MINUTES)
    assert [reason.partition(" ago")[0] for reason in health.check().reasons] == ["The dispatcher last ticked 120 s"]


def test_the_thread_that_makes_jobs_due_says_what_it_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_error(_: Any) -> float:
        raise ValueError("odd")

    monkeypatch.setattr(Due, "seconds_to_next", raise_error)
    prompt = PromptThread(leads=lambda: True, record=Record())
    with pytest.raises(ValueError, match="odd"):
        prompt.run_once()
    prompt.pacer.close()
    duty = Duty.objects.get(name="due")
    assert (duty.error, duty.succeeded_at) == ("ValueError: odd", None)
