"""Stamps of Celery's canvas: what a job's request knows of them, and what becomes of them when it is replaced."""

from typing import Any

import pytest
from celery import chain, chord, current_app, group, shared_task
from celery.canvas import StampingVisitor

from jobs.models import Job
from jobs.task import JobTask
from jobs.testing import run_due_jobs
from tests.jobs.factories import make_job
from tests.processes import Processes
from tests.sample_tasks import add
from tests.waiting import wait_until

SEEN: list[tuple[list[str], dict[str, Any], int]] = []


class Stamp(StampingVisitor):
    """Puts the same stamps on all that it meets."""

    def __init__(self, **stamps: Any) -> None:
        self.stamps = stamps

    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
        return self.stamps


class Stamping(JobTask):
    """Stamps whatever its tasks are replaced by."""

    def on_replace(self, sig: Any) -> Any:
        sig.stamp(Stamp(reason="replaced"))
        return super().on_replace(sig)


@shared_task(bind=True, queue="default")
def look(self: Any, *_: Any) -> None:
    request = self.request
    SEEN.append((request.stamped_headers, request.stamps, request.replaced_task_nesting))


@shared_task(bind=True, queue="default", base=Stamping)
def become_a_look(self: Any) -> None:
    self.replace(look.si())


@shared_task(bind=True, queue="default")
def become(self: Any, count: int) -> None:
    self.replace(become.si(count - 1) if count else look.si())


@shared_task(bind=True, queue="default")
def become_as(self: Any, what: Any) -> None:
    self.replace(self.app.signature(what))


@pytest.fixture
def seen() -> list[Any]:
    SEEN.clear()
    return SEEN


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("canvas", "count"),
    [
        (lambda: look.si(), 1),
        (lambda: chain(look.si(), look.si()), 2),
        (lambda: group(look.si(), look.si() | look.si()), 3),
        (lambda: chord([look.si(), look.si()], look.si()), 3),
        (lambda: add.si(1, 2).set(link=[look.si()]), 1),
    ],
    ids=["task", "chain", "group", "chord", "link"],
)
def test_the_request_of_each_job_of_a_stamped_canvas_has_the_stamps(canvas: Any, count: int, seen: list[Any]) -> None:
    stamped = canvas()
    stamped.stamp(Stamp(customer="north"))
    stamped.apply_async()
    run_due_jobs()
    assert seen == [(["customer"], {"customer": "north"}, 0)] * count


@pytest.mark.django_db
def test_what_replaces_a_job_has_its_stamps_and_those_of_its_own(seen: list[Any]) -> None:
    stamped = become_a_look.si()
    stamped.stamp(Stamp(customer="north"))
    stamped.apply_async()
    run_due_jobs()
    assert seen == [(["customer", "reason"], {"customer": "north", "reason": "replaced"}, 1)]


@pytest.mark.django_db
@pytest.mark.parametrize("count", [0, 2])
def test_a_request_knows_how_often_its_job_was_replaced(count: int, seen: list[Any]) -> None:
    become.delay(count)
    run_due_jobs()
    assert seen == [([], {}, count + 1)]


@pytest.mark.django_db
def test_what_replaces_a_job_is_not_shown_with_its_arguments() -> None:
    results = [
        become.apply_async((0,), argsrepr="(secret)", headers={"tenant": "north"}),
        become_as.delay(dict(look.si().set(argsrepr="(shown)"))),
    ]
    run_due_jobs()
    kept = [Job.objects.get(pk=result.id).headers for result in results]
    assert kept == [
        {"tenant": "north", "replaced_task_nesting": 1},
        {"argsrepr": "(shown)", "replaced_task_nesting": 1},
    ]


@pytest.mark.django_db
@pytest.mark.parametrize("odd", ["customer", 7, [7], {"customer": 1}, None])
def test_headers_that_somebody_has_written_by_hand_stop_no_job(odd: Any, seen: list[Any]) -> None:
    make_job(task=look.name, headers={"stamped_headers": odd, "replaced_task_nesting": odd, "customer": "north"})
    (job,) = run_due_jobs()
    assert job.state == "completed"
    assert seen == [([], {}, odd if isinstance(odd, int) else 0)]


@pytest.mark.django_db(transaction=True)
def test_jobs_are_revoked_by_their_stamps(processes: Processes) -> None:
    processes.worker("default")
    answers = current_app.control.revoke_by_stamped_headers({"customer": ["north"]}, reply=True, timeout=10)
    assert len(answers) == 1
    jobs = {}
    for customer in ("north", "south"):
        stamped = add.si(1, 2)
        stamped.stamp(Stamp(customer=customer))
        jobs[customer] = stamped.apply_async()
    wait_until(lambda: Job.objects.filter(finished_at__isnull=True).count() == 0)
    assert (jobs["north"].state, jobs["south"].state) == ("REVOKED", "SUCCESS")
