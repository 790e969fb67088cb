"""Dedup keys of jobs that belong to flows: no call takes the place of such a job, and none of them that of another."""

from typing import Any

import pytest
from celery import chord, shared_task

from jobs.enqueue import NotSupported
from jobs.flows import ChildRefused, fan_out
from jobs.models import Flow, Job
from jobs.testing import run_due_jobs
from tests.jobs.test_flows import listed, same

pytestmark = pytest.mark.django_db

NEWEST: dict[str, Any] = {"dedup_key": "k", "dedup_latest": True}
MODES = [{"dedup_key": "k"}, {"dedup_key": "k", "dedup_seconds": 60}, NEWEST]


@shared_task
def whatever(*args: Any) -> list[Any]:
    return list(args)


@pytest.mark.parametrize("again", MODES)
@pytest.mark.parametrize("first", MODES)
def test_a_second_flow_under_a_key_is_refused_and_the_first_one_stays_whole(first: Any, again: Any) -> None:
    result = fan_out(None, [same.s(1), same.s(2)], then=listed.s("first"), **first)
    with pytest.raises(NotSupported, match="cannot belong to this flow"):
        fan_out(None, [same.s(8), same.s(9)], then=listed.s("second"), **again)
    assert Flow.objects.count() == 1
    run_due_jobs()
    assert Job.objects.get(pk=result.id).result == [1, 2, "first"]
    assert set(Job.objects.values_list("state", flat=True)) == {"completed"}


def test_a_child_may_have_no_key_and_a_part_of_a_chord_one_that_is_free() -> None:
    with pytest.raises(ChildRefused, match="may have no dedup_key"):
        fan_out(None, [same.s(1).set(dedup_key="free")], then=listed.s())
    alone = same.apply_async((7,), countdown=60, dedup_key="taken")
    with pytest.raises(NotSupported, match=alone.id):
        chord([same.s(1), same.s(2).set(dedup_key="taken")], listed.s()).delay()
    assert Job.objects.count() == 1
    result = chord([same.s(1), same.s(2).set(dedup_key="free")], listed.s()).delay()
    run_due_jobs()
    assert Job.objects.get(pk=result.id).result == [1, 2]


def test_a_flow_takes_no_place_of_a_job_that_waits_alone() -> None:
    alone = same.apply_async((7,), countdown=60, **NEWEST)
    with pytest.raises(NotSupported, match=alone.id):
        fan_out(None, [same.s(1)], then=listed.s(), **NEWEST)
    job = Job.objects.get()
    assert (job.args, job.successor) == ([7], None)


def test_the_latest_call_comes_after_a_flow_under_its_key() -> None:
    result = fan_out(None, [same.s(1), same.s(2)], then=listed.s(), dedup_key="k")
    latest = whatever.apply_async(("newest",), **NEWEST)
    assert latest.id != result.id
    run_due_jobs()
    assert [Job.objects.get(pk=one.id).result for one in (result, latest)] == [[1, 2], ["newest"]]


def test_the_latest_call_comes_after_a_part_under_its_key() -> None:
    part = same.s(1).set(dedup_key="k")
    result = chord([part, same.s(2)], listed.s()).delay()
    whatever.apply_async(("newest",), **NEWEST)
    run_due_jobs()
    assert Job.objects.get(pk=result.id).result == [1, 2]
    assert Job.objects.get(task=whatever.name).result == ["newest"]


@pytest.mark.parametrize("mode", MODES)
def test_a_later_step_of_a_part_whose_key_is_taken_fails_its_flow(mode: Any) -> None:
    alone = same.apply_async((7,), countdown=60, dedup_key="k")
    result = chord([same.s(1) | whatever.s().set(**mode), same.s(2)], listed.s()).delay()
    run_due_jobs()
    body = Job.objects.get(pk=result.id)
    assert (body.state, alone.id in body.error) == ("failed", True)
    assert Job.objects.get(pk=alone.id).args == [7]
