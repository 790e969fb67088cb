"""Two who end the same run at once: one of them does, and it is counted once.

The first has written its end, and its transaction is still open when the second tries.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from django.db import connections

from jobs import claims, services, settle, signals
from jobs.dispatcher import rescue, set_aside
from jobs.models import Attempt, Job, JobEvent, QueueControl, Worker
from jobs.queues import QUEUES
from jobs.settle import Run
from tests.jobs.connections import somebody_waits_for_a_lock
from tests.jobs.factories import claim_job, make_job, make_worker
from tests.variants import variant
from tests.waiting import wait_until

LAST_STALL = QUEUES["default"].max_stalls
SIGNALS = {
    "completed": signals.job_completed,
    "failed": signals.job_failed,
    "retried": signals.job_retried,
    "stalled": signals.job_stalled,
}


class End(NamedTuple):
    """A way to end a run, and what it leaves behind."""

    write: Callable[[Run, Worker], object]
    state: str
    event: str | None = None
    outcome: str | None = None
    # It is an end of the job, not of that run: it comes as well after an end that leaves the job alive.
    is_of_the_job: bool = False


def complete(run: Run, _: Worker) -> None:
    """By one statement, as what nothing follows is completed."""
    if claims.complete({run.job_id: (run.token, 1)}):
        settle._announce_completed(run)


def complete_with_what_follows(run: Run, _: Worker) -> None:
    settle.complete(run, result=1)


def lose(run: Run, worker: Worker) -> None:
    settle.lose(Job.objects.filter(pk=run.job_id, worker_id=worker.pk), evidence="it died")


def give_up(run: Run, worker: Worker) -> None:
    rescue.give_up(worker, Worker.objects.filter(dead_at__isnull=True), evidence="it fell silent")


# The job's state, the event's kind and the outcome in the history.
COMPLETED = ("completed", "completed")
FAILED = ("failed", "failed", "failed")
CANCELLED = ("cancelled", "cancelled", "cancelled")
STALLED = ("waiting", "stalled", "stalled")
ENDS = {
    "completion": End(complete, *COMPLETED),
    "completion with what follows": End(complete_with_what_follows, *COMPLETED),
    "failure": End(lambda run, _: settle.fail(run, error="broken"), *FAILED),
    "retry": End(lambda run, _: settle.retry(run, delay=600, error="later"), "delayed", "retried", "retried"),
    "end by the worker": End(lambda run, _: settle.cancel(run, reason="so"), *CANCELLED),
    "loss of the process": End(lambda run, _: settle.lose(run.row(), evidence="signal 9"), *STALLED),
    "audit": End(lose, *STALLED),
    "broken connection": End(lambda run, _: settle.count_broken(run, evidence="cut off"), *STALLED),
    "rescue": End(give_up, *STALLED),
    "give back": End(lambda run, _: settle.give_back(run), "waiting"),
    "hand back": End(lambda _, worker: settle.hand_back(worker.pk), "waiting"),
    "rate limit": End(lambda run, _: settle.rate_limit(run, seconds=1), "waiting"),
    "revocation": End(lambda run, _: services.revoke_job(job_id=run.job_id), *CANCELLED, is_of_the_job=True),
    "dispatcher": End(lambda run, _: set_aside.fail(run.job_id, "odd"), *FAILED, is_of_the_job=True),
}
# One of each kind: a single statement, two in one transaction, one that passes over locked rows, many rows, any run.
USUAL = ("completion", "retry", "loss of the process", "rescue", "revocation")


@pytest.fixture
def heard() -> Iterator[Counter[str]]:
    """How often each signal was sent."""
    count: Counter[str] = Counter()
    receivers: dict[str, Callable[..., None]] = {}
    for kind, signal in SIGNALS.items():

        def hear(kind: str = kind, **_: Any) -> None:
            count[kind] += 1

        receivers[kind] = hear
        signal.connect(hear)
    yield count
    for kind, signal in SIGNALS.items():
        signal.disconnect(receivers[kind])


def both(first: Callable[[], object], second: Callable[[], object]) -> None:
    """The second tries while the transaction of the first is open: it waits for that, or leaves the row alone."""
    is_written, may_commit = threading.Event(), threading.Event()

    def end_slowly() -> None:
        with settle.atomic():
            first()
            is_written.set()
            assert may_commit.wait(timeout=60)
        connections.close_all()

    def end() -> None:
        second()
        connections.close_all()

    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(end_slowly)
        wait_until(lambda: is_written.is_set() or slow.done())
        other: Future[None] = threads.submit(end)
        wait_until(lambda: other.done() or somebody_waits_for_a_lock())
        may_commit.set()
        slow.result()
        other.result()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("stalled_count", [LAST_STALL, variant(0)], ids=["last stall", "first stall"])
@pytest.mark.parametrize("name", [name if name in USUAL else variant(name) for name in ENDS])
def test_of_two_that_end_a_run_at_once_one_does_and_is_counted_once(
    name: str, stalled_count: int, heard: Counter[str]
) -> None:
    for other_name, other in ENDS.items():
        heard.clear()
        worker = make_worker()
        run = claim_job(make_job(stalled_count=stalled_count), worker)
        both(lambda: ENDS[name].write(run, worker), lambda: other.write(run, worker))  # noqa: B023  # ended by then
        told = (
            Job.objects.get(pk=run.job_id).state,
            sorted(JobEvent.objects.values_list("kind", flat=True)),
            list(Attempt.objects.filter(job_id=run.job_id).order_by("pk").values_list("outcome", flat=True)),
        )
        state, events, outcomes = expected(ENDS[name], other, stalled_count)
        assert told == (state, sorted(events), outcomes), other_name
        assert heard == Counter(kind for kind in events if kind in SIGNALS), other_name
        for model in (JobEvent, Job, QueueControl):
            model.objects.all().delete()


def expected(end: End, other: End, stalled_count: int) -> tuple[str, list[str], list[str]]:
    """What the first of two ends leaves behind, and the second where it is none of the run."""
    state, event = end.state, end.event
    if event == "stalled" and stalled_count >= LAST_STALL:
        state = event = "failed"
    events, outcomes = [event] if event else [], [end.outcome] if end.outcome else []
    if other.is_of_the_job and state in ("waiting", "delayed"):
        # No run of it is ended then, so there is none for the history.
        return other.state, [*events, str(other.event)], outcomes
    return state, events, outcomes
