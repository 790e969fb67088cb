"""`delivery_info["redelivered"]`, by which a body is told that an earlier run of its job may have begun."""

from collections.abc import Callable
from typing import Any

import pytest
from celery import shared_task
from celery.exceptions import Reject

from jobs import services, settle
from jobs.models import Job
from jobs.settle import Run
from jobs.testing import run_due_jobs
from tests.jobs.factories import claim_job, make_job, make_worker

pytestmark = pytest.mark.django_db


@shared_task(bind=True, queue="default")
def told(self: Any, how: str = "") -> bool:
    redelivered: bool = self.request.delivery_info["redelivered"]
    if self.request.retries == 0 and how == "reject":
        raise Reject("not now", requeue=True)
    if self.request.retries == 0 and how == "retry":
        self.retry(countdown=0)
    if how == "replace":
        self.replace(told.si())
    return redelivered


def results() -> list[Any]:
    run_due_jobs()
    return list(Job.objects.values_list("result", flat=True))


@pytest.mark.parametrize(("how", "expected"), [("", False), ("reject", True), ("retry", False), ("replace", False)])
def test_only_a_rejected_run_comes_again(how: str, expected: bool) -> None:
    told.delay(how)
    assert results() == [expected]


@pytest.mark.parametrize(
    "end",
    [
        lambda run: settle.lose(run.row(), evidence="killed"),
        lambda run: settle.give_back(run),
        lambda run: settle.hand_back(run.row().get().worker_id),
    ],
    ids=["lost", "given back", "handed back"],
)
def test_a_run_that_comes_after_one_that_was_cut_off_is_told(end: Callable[[Run], Any]) -> None:
    end(claim_job(make_job(task=told.name), make_worker()))
    assert results() == [True]


def test_what_replaces_a_job_or_retries_it_or_is_run_again_by_a_person_is_not_told() -> None:
    for how in ("replace", "retry"):
        settle.give_back(claim_job(make_job(task=told.name, args=[how]), make_worker()))
    assert results() == [False, False]
    job = make_job(task=told.name)
    settle.give_back(claim_job(job, make_worker()))
    run_due_jobs()
    services.retry_job(job_id=job.pk, actor="ann")
    assert results() == [False, False, False]
