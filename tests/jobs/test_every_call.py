"""Whatever a call says, by chance: it is refused, and nothing has happened; or its jobs can be ended in every way and
shown on every page, and its neighbours go on."""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, timedelta
from io import StringIO
from typing import Any
from uuid import UUID

import hypothesis.strategies as st
import pytest
from celery import chain, chord, group
from django.core.management import call_command
from django.db import transaction
from django.db.models.functions import Now
from django.test import Client
from hypothesis import HealthCheck, event, given, settings
from kombu.exceptions import EncodeError

from jobs import purge, services, settle
from jobs.bulk import enqueue_many
from jobs.dispatcher import due, flows
from jobs.dispatcher.pacing import Pacer
from jobs.flows import fan_out
from jobs.job_filter import JobFilter
from jobs.models import Job, Worker
from jobs.options import _CHECKS, _IDS
from jobs.queues import QUEUES
from jobs.settle import Run
from jobs.testing import run_due_jobs
from tests.jobs.factories import claim_job, make_job, make_worker, state_of
from tests.sample_tasks import add, echo, retry_evaluated
from tests.variants import examples, variant

pytestmark = pytest.mark.django_db

MINUTE = timedelta(minutes=1)
texts = st.text(st.characters(), max_size=20) | st.sampled_from(["\0", "\ud800", "", "x" * 300, "{}", "•••"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(texts, inside, max_size=3),
    max_leaves=8,
)
numbers = st.sampled_from([0, 1, -1, 0.5, 59, 3e8, 1e9, 1e300, 10**12, 2**31, 2**63, float("inf"), float("nan")])
moments = st.datetimes() | st.datetimes(timezones=st.just(UTC)) | numbers.map(str)
odd = json_values | numbers
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "countdown": numbers | odd,
    "eta": moments | odd,
    "expires": numbers | moments | odd,
    "priority": st.integers(-1, 10) | odd,
    "queue": st.sampled_from([*QUEUES, "nobodys"]) | odd,
    "max_attempts": numbers | odd,
    "time_limit": numbers | odd,
    "soft_time_limit": numbers | odd,
    "correlation_id": texts | odd,
    "group_id": texts | odd,
    "headers": st.dictionaries(texts, json_values, max_size=3) | odd,
    "dedup_key": texts | odd,
    "dedup_seconds": numbers | odd,
    "dedup_latest": st.booleans() | odd,
    "rate_key": texts | odd,
    "rate_limit": st.sampled_from(["1/h", "10/s", "0/s", "10000/h"]) | odd,
    "concurrency_key": texts | odd,
    "concurrency_limit": numbers | odd,
    "quiet_hours": st.sampled_from(["22:00-07:00 Europe/Berlin", "00:00-23:59 UTC"]) | odd,
    "owner_id": numbers | odd,
    "task_id": st.uuids().map(str) | texts | odd,
    "link": st.just([]) | odd,
    "shadow": odd,
    "argsrepr": texts | odd,
    "kwargsrepr": texts | odd,
    "stamped_headers": odd,
}
options = st.sets(st.sampled_from(sorted(OPTIONS)), max_size=3).flatmap(
    lambda names: st.fixed_dictionaries({name: OPTIONS[name] for name in sorted(names)})
)


def flow(value: Any, said: dict[str, Any]) -> Any:
    return fan_out(None, [echo.s(value), echo.s(1).set(**said)], then=echo.s())


CALLS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "one": lambda value, said: echo.apply_async((value,), **said),
    "by name": lambda value, said: echo.app.send_task(echo.name, (value,), **said),
    "many": lambda value, said: enqueue_many(echo, [{"value": value}, {"value": 1}], **said),
    "chain": lambda value, said: chain(echo.s(value), echo.s().set(**said), echo.s()).apply_async(),
    "chain of all": lambda value, said: chain(echo.s(value), echo.s()).apply_async(**said),
    "group": lambda value, said: group(echo.s(value), echo.s(1).set(**said)).apply_async(),
    "chord": lambda value, said: chord([echo.s(value).set(**said), echo.s(1)], echo.s()).apply_async(),
    "link": lambda value, said: echo.apply_async((value,), link=echo.s().set(**said), link_error=echo.s().set(**said)),
    "flow": flow,
    "edit": lambda value, said: services.edit_job(
        job_id=UUID(str(echo.delay(1).id)), args=value, kwargs=said, actor="ann"
    ),
}
REFUSALS = (ValueError, TypeError, LookupError, EncodeError, services.ActionRefused)


def claim(job: Job, worker: Worker) -> Run | None:
    claimable = Job.objects.filter(pk=job.pk, state="waiting", lane="", queue="default").exclude(expires_at__lte=Now())
    return claim_job(job, worker) if claimable.exists() else None


def complete(job: Job, worker: Worker) -> None:
    if (run := claim(job, worker)) is not None:
        settle.complete(run, result=job.args)


def fail(job: Job, worker: Worker) -> None:
    if (run := claim(job, worker)) is not None:
        settle.fail(run, error="it broke")


def retry(job: Job, worker: Worker) -> None:
    if (run := claim(job, worker)) is not None:
        settle.retry(run, delay=1, error="once more")


def lose(job: Job, worker: Worker) -> None:
    if claim(job, worker) is not None:
        settle.lose(Job.objects.filter(worker_id=worker.pk), evidence="it died")


def cancel(job: Job, worker: Worker) -> None:
    services.cancel_job(job_id=job.pk, actor="ann")


def expire(job: Job, worker: Worker) -> None:
    Job.objects.filter(pk=job.pk, state__in=["waiting", "delayed"]).update(expires_at=Now() - MINUTE)
    due.run_once()


def promote(job: Job, worker: Worker) -> None:
    services.promote_job(job_id=job.pk, actor="ann")


def run(job: Job, worker: Worker) -> None:
    run_due_jobs(ahead=timedelta(days=4000))


# For what takes longer than all else. No number at an end: those are tried more often.
rarely = st.integers(0, 39).map(lambda number: number == 23)

WAYS = [complete, fail, retry, lose, cancel, expire, promote, run]


def show(job_id: UUID, client: Client) -> None:
    """On its page, in the lists, and at a terminal."""
    assert client.get(f"/admin/jobs/job/{job_id}/change/").status_code == 200
    assert client.get("/admin/jobs/job/").status_code == 200
    assert client.get("/admin/queues/").status_code == 200
    for words in (["list"], ["show", str(job_id)], ["why", str(job_id)], ["stats"]):
        # With the status of what it has to say.
        with suppress(SystemExit):
            call_command("jobs", *words, stdout=StringIO())


def neighbours() -> tuple[Job, Job, Job]:
    """An ordinary delayed job, one before its retry, and one with a limit."""
    return (
        make_job(state="delayed", run_at=Now() - MINUTE),
        make_job(state="delayed", run_at=Now() - MINUTE, attempt=2, task=retry_evaluated.name),
        make_job(rate_key="ordinary", rate_limit="10/s", task=add.name),
    )


def all_go_through(delayed: Job, retried: Job, paced: Job) -> None:
    due.run_once()
    assert (state_of(delayed.pk), state_of(retried.pk)) == ("waiting", "waiting")
    pacer = Pacer()
    try:
        for _ in range(3):
            if paced.pk not in pacer._granted:
                pacer.look()
        assert paced.pk in pacer._granted
    finally:
        for job_id, grant in pacer._granted.items():
            pacer._doorbell.withdraw({grant.place.queue: [job_id]})
        pacer.close()
    flows.run_once()


# Parts of the long run, so that several processes share it.
@pytest.mark.parametrize("part", [1, *map(variant, (2, 3, 4))])
@given(
    how=st.sampled_from(sorted(CALLS)),
    value=json_values,
    said=options,
    way=st.sampled_from(WAYS),
    is_shown=rarely,
)
@settings(
    max_examples=examples(share=0.25),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@pytest.mark.timeout(2400)
@pytest.mark.usefixtures("empty_redis")
def test_what_is_accepted_can_be_ended_and_what_is_refused_has_done_nothing(
    admin_client: Client,
    part: int,
    how: str,
    value: Any,
    said: dict[str, Any],
    way: Callable[[Job, Worker], None],
    is_shown: bool,
) -> None:
    with transaction.atomic():
        worker = make_worker(queues=list(QUEUES), concurrency=20)
        ordinary = neighbours()
        before = Job.objects.count()
        try:
            with transaction.atomic():
                CALLS[how](value, said)
        except REFUSALS:
            event("refused")
            assert Job.objects.count() == before
        else:
            event(f"accepted, then {way.__name__}")
            for job in Job.objects.exclude(pk__in=[one.pk for one in ordinary]):
                try:
                    way(job, worker)
                except services.ActionRefused:
                    continue
                if is_shown:
                    show(job.pk, admin_client)
        if way is not run:
            all_go_through(*ordinary)
        purge.purge(wanted=JobFilter(), actor="ann")
        transaction.set_rollback(True)


def test_the_table_of_options_is_whole() -> None:
    internal = {"group_index", "flow_slot", "awaited_flow_id", "parent_id", "root_id"}
    by_canvases = {"link", "link_error", "chain"}
    assert {*_CHECKS, *_IDS} - internal - by_canvases <= OPTIONS.keys()
