"""Long chains: each step takes the rest of its chain out of the row of the step before it, inside of PostgreSQL."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import ANY
from uuid import UUID

import pytest
from celery import chain, chord, group, shared_task
from django.db import connection
from django.test.utils import CaptureQueriesContext

from jobs import claims, services, settle
from jobs.claims import Claim
from jobs.models import Job
from jobs.settle import Run
from jobs.task import JobTask
from jobs.testing import run_due_jobs
from tests.jobs.factories import make_worker, state_of
from tests.jobs.test_follow_ups import operator
from tests.sample_tasks import add, count_items, echo, fail_with

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("empty_redis")]


class Recording(JobTask):
    """A class of its own, which reads what its tasks are called with."""

    abstract = True
    calls: list[dict[str, Any]] = []

    def apply_async(self, *args: Any, **options: Any) -> Any:
        self.calls.append(options)
        return super().apply_async(*args, **options)


@shared_task(base=Recording)
def recorded(value: Any) -> Any:
    return value


@shared_task
def needs_two(one: Any, other: Any) -> Any:
    return one


def queries() -> AbstractContextManager[CaptureQueriesContext]:
    return CaptureQueriesContext(connection)


def claimed(job_id: UUID | str, token: str = "first") -> Claim:
    worker = make_worker()
    (claim,) = claims.claim({UUID(str(job_id)): f"{worker.pk.hex}:{token}"}, worker_id=worker.pk)
    return claim


def ended(claim: Claim, result: Any = 1) -> bool:
    return settle.complete(Run(claim.job_id, claim.token), result=result, claim=claim)


def named(steps: list[Any]) -> list[str]:
    return [step["options"]["task_id"] for step in steps]


def ids_of(result: Any) -> list[str]:
    """The steps of a chain, the last one first."""
    return [result.id, *(ids_of(result.parent) if result.parent else [])]


def test_a_claim_brings_the_next_step_alone_and_the_row_keeps_the_chain() -> None:
    ids = ids_of(chain(echo.s(1), *(echo.s() for _ in range(9))).apply_async())
    claim = claimed(ids[-1])
    assert named(claim.follow_ups["chain"]) == [ids[-2]]
    assert named(Job.objects.get().follow_ups["chain"]) == ids[:-1]


def test_each_step_has_the_rest_of_the_chain_and_its_own_links_and_errbacks() -> None:
    steps = [echo.s().set(link=[echo.si(f"after {number}")]) for number in range(4)]
    ids = ids_of(chain(echo.s(1), *steps).apply_async(link_error=fail_with.s()))
    for place in range(len(ids) - 1, -1, -1):
        job = Job.objects.get(pk=ids[place])
        after = [link["args"] for link in job.follow_ups.get("link", [])]
        assert after == ([] if place == len(ids) - 1 else [[f"after {3 - place}"]])
        assert job.follow_ups["link_error"] == [ANY]
        assert named(job.follow_ups.get("chain", [])) == ids[:place]
        assert ended(claimed(ids[place]))


def test_what_a_step_costs_does_not_grow_with_its_chain() -> None:
    longest = {}
    for count in (20, 200):
        ids = ids_of(chain(echo.s(1), *(echo.s() for _ in range(count))).apply_async())
        with queries() as found:
            claim = claimed(ids[-1])
            ended(claim)
        assert state_of(ids[-2]) == "waiting"
        texts = [query["sql"] for query in found.captured_queries]
        assert not [text for text in texts if '"jobs_job"."follow_ups"' in text]
        longest[count] = max(len(text) for text in [*texts, claim.follow_ups_json])
    # Ids differ in their length nowhere, moments in a digit.
    assert longest[200] < longest[20] + 100


CALLED: dict[str, Any] = {
    "a canvas in the middle": lambda: (
        echo.s(1) | group(echo.s(), echo.s()) | count_items.s() | echo.s() | echo.s(),
        2,
    ),
    "a canvas next to last": lambda: (echo.s(1) | echo.s() | echo.s() | group(echo.s(), echo.s()) | count_items.s(), 2),
    "a group at the end": lambda: (echo.s(1) | echo.s() | echo.s() | group(echo.s(), echo.s()), [1, 1]),
    "a member of a chord": lambda: (chord([add.s(1, 2) | echo.s() | echo.s() | echo.s()], count_items.s()), 1),
    "a class of its own": lambda: (echo.s(1) | recorded.s() | recorded.s() | echo.s() | echo.s(), 1),
    "dedup keys": lambda: (echo.s(1) | echo.s().set(dedup_key="two") | echo.s().set(dedup_key="three") | echo.s(), 1),
    "a link that is a chain": lambda: (echo.s(1).set(link=[echo.s() | echo.s() | echo.s()]) | echo.s() | echo.s(), 1),
    "immutable steps": lambda: (echo.s(1) | echo.si(2) | echo.s() | echo.si(3) | echo.s(), 3),
    "dates": lambda: (echo.s(1) | add.s(1).set(countdown=0) | add.s(2) | add.s(3), 7),
}


@pytest.mark.parametrize("name", CALLED)
def test_a_chain_ends_as_it_is_written(name: str) -> None:
    canvas, expected = CALLED[name]()
    result = canvas.apply_async()
    run_due_jobs(at_most=50)
    assert result.get(timeout=1) == expected
    assert not Job.objects.exclude(state="completed")


def test_a_class_of_its_own_is_called_with_the_chain() -> None:
    ids = ids_of(chain(echo.s(1), recorded.s(), echo.s(), echo.s()).apply_async())
    Recording.calls.clear()
    assert ended(claimed(ids[-1]))
    (options,) = Recording.calls
    assert named(options["chain"]) == ids[:2]
    assert "rest_of" not in options


def test_a_step_that_is_kept_as_a_successor_keeps_the_chain() -> None:
    holder = echo.apply_async((0,), dedup_key="k")
    claim = claimed(holder.id, "holder")
    latest = echo.s().set(dedup_key="k", dedup_latest=True)
    result = chain(echo.s(1), echo.s(), latest, echo.s(), echo.s()).apply_async()
    run_due_jobs(at_most=2)
    assert named(Job.objects.get(pk=holder.id).successor["follow_ups"]["chain"]) == ids_of(result)[:2]
    assert ended(claim)
    run_due_jobs(at_most=10)
    assert result.get(timeout=1) == 1


def test_a_step_that_cannot_be_enqueued_keeps_the_chain_and_what_comes_after_it_is_cancelled() -> None:
    steps = [needs_two.s(2), echo.s(), echo.s()]
    ids = ids_of(chain(echo.s(1), *steps).apply_async())
    claim = claimed(ids[-1])
    row = Job.objects.get(pk=ids[-1])
    row.follow_ups["chain"][-1]["args"] = []
    row.save(update_fields=["follow_ups"])
    claim = Claim(
        **{**vars(claim), "follow_ups_json": json.dumps({**cut(claim), "chain": row.follow_ups["chain"][-1:]})}
    )
    assert ended(claim)
    assert [state_of(one) for one in ids] == ["cancelled", "cancelled", "failed", "completed"]
    assert named(Job.objects.get(pk=ids[2]).follow_ups["chain"]) == ids[:2]
    services.retry_job(job_id=UUID(ids[-1]), actor=operator())
    assert state_of(ids[-1]) == "waiting"


def cut(claim: Claim) -> dict[str, Any]:
    follow_ups: dict[str, Any] = json.loads(claim.follow_ups_json)
    assert len(follow_ups["chain"]) == 1
    return follow_ups


def test_a_run_that_lost_its_job_writes_no_step() -> None:
    ids = ids_of(chain(echo.s(1), echo.s(), echo.s(), echo.s()).apply_async())
    claim = claimed(ids[-1])
    assert settle.give_back(Run(claim.job_id, claim.token))
    assert not ended(claim)
    assert [str(job.pk) for job in Job.objects.all()] == ids[-1:]


def test_nobody_else_may_name_the_row_that_a_chain_is_taken_from() -> None:
    other = chain(echo.s(1), echo.s(), echo.s()).apply_async()
    before = ids_of(other)[-1]
    calls: list[Callable[[], Any]] = [
        lambda: echo.apply_async((1,), rest_of=before),
        lambda: echo.apply_async((1,), link=[echo.s().set(rest_of=before)]),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="unknown options rest_of"):
            call()
