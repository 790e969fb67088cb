"""From where jobs are enqueued: savepoints, async code, other databases."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from celery import chain, group
from celery.exceptions import TimeoutError
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connection, connections, transaction
from django.db.models.functions import Now
from django.http import HttpRequest, JsonResponse
from django.test import AsyncClient, Client
from django.urls import path

from jobs.callers import CalledFromAsyncCode, LedgerHidden, NotCommitted
from jobs.models import Job
from tests import sample_tasks
from tests.processes import Processes

pytestmark = pytest.mark.django_db(transaction=True)


async def enqueue_in_a_view(request: HttpRequest) -> JsonResponse:
    plain = await sample_tasks.add.adelay(1, 2)
    result = await sample_tasks.add.aapply_async((3, 4), countdown=60, dedup_key="view")
    return JsonResponse({"ids": [plain.id, result.id]})


urlpatterns = [
    path("enqueue", enqueue_in_a_view),
    path("wait", lambda request: enqueue_and_wait(request)),
    path("wait-outside", transaction.non_atomic_requests(lambda request: enqueue_and_wait(request, timeout=0))),
]


@pytest.fixture
def other_database() -> Iterator[str]:
    """A second alias, of the same server: what counts is that it is another transaction."""
    connections.settings["other"] = connections.settings["default"]
    yield "other"
    del connections.settings["other"]


@pytest.mark.django_db(transaction=False)
def test_a_savepoint_that_is_rolled_back_takes_its_job_and_its_ring_with_it(
    django_capture_on_commit_callbacks: Any,
) -> None:
    with django_capture_on_commit_callbacks() as rings, transaction.atomic():
        with transaction.atomic():
            sample_tasks.add.delay(1, 2)
            transaction.set_rollback(True)
        with transaction.atomic():
            kept = sample_tasks.add.delay(3, 4)
    assert [str(job.pk) for job in Job.objects.all()] == [kept.id]
    assert len(rings) == 1


def test_an_async_view_enqueues(settings: Any) -> None:
    settings.ROOT_URLCONF = __name__
    answer = async_to_sync(AsyncClient().get)("/enqueue")
    assert {str(job.pk): job.args for job in Job.objects.all()} == dict(
        zip(answer.json()["ids"], ([1, 2], [3, 4]), strict=True)
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: sample_tasks.add.delay(1, 2),
        lambda: sample_tasks.add.apply_async((1, 2)),
        lambda: chain(sample_tasks.add.s(1, 2), sample_tasks.add.s(3)).apply_async(),
    ],
    ids=["delay", "apply_async", "a chain"],
)
def test_a_blocking_call_in_an_event_loop_is_refused_and_names_the_other_way(call: Any) -> None:
    async def view() -> None:
        call()

    with pytest.raises(
        CalledFromAsyncCode, match=r"sample_tasks\.add was .* `await add\.adelay\(…\)` or `await add\.a"
    ):
        asyncio.run(view())
    assert not Job.objects.exists()


def test_a_chain_is_enqueued_from_async_code_in_a_thread() -> None:
    async def view() -> None:
        await sync_to_async(chain(sample_tasks.add.s(1, 2), sample_tasks.add.s(3)).apply_async)()

    async_to_sync(view)()
    assert Job.objects.count() == 1


# In a process of its own: within a test, Django forbids other databases.
IN_A_TRANSACTION_ELSEWHERE = """
import django
django.setup()
from django.db import connections, transaction
from jobs.callers import OutsideOfTheTransaction
from tests.sample_tasks import add
connections.settings["other"] = connections.settings["default"]
with transaction.atomic(using="other"):
    try:
        add.delay(1, 2)
    except OutsideOfTheTransaction as refusal:
        print(refusal)
    with transaction.atomic():
        add.delay(3, 4)
    transaction.on_commit(lambda: add.delay(5, 6), using="other")
"""


def test_a_job_that_would_outlive_the_callers_rollback_on_another_database_is_refused(processes: Processes) -> None:
    script = processes.start("tests.script", env={"SCRIPT": IN_A_TRANSACTION_ELSEWHERE})
    assert script.wait() == 0
    assert "in a transaction on the database 'other', but jobs are in 'default'" in script.output
    assert [job.args for job in Job.objects.order_by("created_at")] == [[3, 4], [5, 6]]


class SplitRouter:
    def __init__(self, *, read: str, write: str) -> None:
        self.read, self.write = read, write

    def db_for_read(self, model: Any, **_: Any) -> str | None:
        return self.read if model is Job else None

    def db_for_write(self, model: Any, **_: Any) -> str | None:
        return self.write if model is Job else None


@pytest.mark.parametrize(
    ("read", "write", "words"),
    [
        ("other", "default", "DATABASE_ROUTERS spread the ledger over default, other"),
        ("other", "other", "DATABASE_ROUTERS spread the ledger over default, other"),
    ],
)
def test_a_ledger_in_two_databases_is_refused(
    other_database: str, settings: Any, read: str, write: str, words: str
) -> None:
    settings.DATABASE_ROUTERS = [SplitRouter(read=read, write=write)]
    with pytest.raises(SystemCheckError, match=words) as refusal:
        call_command("check")
    assert "jobs.E004" in str(refusal.value)


class EverythingElsewhere:
    def db_for_read(self, model: Any, **_: Any) -> str:
        return "elsewhere"

    db_for_write = db_for_read


def test_a_ledger_in_a_database_that_is_not_declared_or_is_no_postgresql_is_refused(settings: Any) -> None:
    settings.DATABASE_ROUTERS = [EverythingElsewhere()]
    with pytest.raises(SystemCheckError, match="'elsewhere', which is not in DATABASES"):
        call_command("check")
    connections.settings["elsewhere"] = {
        **connections.settings["default"],
        "ENGINE": "django.db.backends.sqlite3",
        "OPTIONS": {},
    }
    try:
        with pytest.raises(SystemCheckError, match="in a database of the kind sqlite"):
            call_command("check")
    finally:
        del connections["elsewhere"], connections.settings["elsewhere"]


@pytest.mark.parametrize(
    "statement",
    [
        "SET search_path TO pg_catalog",
        "SET LOCAL search_path TO pg_catalog",
        "SELECT set_config('search_path', 'pg_catalog', true)",
    ],
)
def test_a_caller_whose_search_path_hides_the_ledger_is_told_and_its_transaction_goes_on(statement: str) -> None:
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("CREATE TABLE pg_temp.callers (id int)")
            cursor.execute(statement)
            for call in (sample_tasks.add.delay, sample_tasks.add.s().delay):
                with pytest.raises(LedgerHidden, match=r"sample_tasks\.add was enqueued while the search_path"):
                    call(1, 2)
            cursor.execute("INSERT INTO pg_temp.callers VALUES (1)")
            cursor.execute("SET search_path TO public")
            sample_tasks.add.delay(1, 2)
        assert Job.objects.count() == 1
    finally:
        connection.close()


# -- Waiting for a result ----------------------------------------------------------------------------------------------
def enqueue_and_wait(request: HttpRequest, timeout: float | None = None) -> JsonResponse:
    return JsonResponse({"sum": sample_tasks.add.delay(1, 2).get(timeout=timeout)})


@pytest.mark.urls(__name__)
def test_a_view_that_waits_for_a_job_of_its_own_transaction_is_told_so_at_once(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    with pytest.raises(NotCommitted, match="non_atomic_requests"):
        client.get("/wait")
    assert not Job.objects.exists()
    with pytest.raises(TimeoutError, match="timed out"):
        client.get("/wait-outside")
    assert Job.objects.get().state == "waiting"


@pytest.mark.parametrize("has_savepoint", [False, True])
def test_whoever_waits_in_the_transaction_of_a_job_is_told_so_at_once(has_savepoint: bool) -> None:
    with transaction.atomic():
        if has_savepoint:
            with transaction.atomic():
                result = sample_tasks.add.delay(1, 2)
        else:
            result = sample_tasks.add.delay(1, 2)
        many = group(sample_tasks.add.s(1, 2), sample_tasks.add.s(3, 4)).delay()
        for one in (result, many):
            with pytest.raises(NotCommitted, match="was written by the transaction that waits"):
                one.get()
        # A caller that is prepared for a time-out is prepared for this one.
        with pytest.raises(TimeoutError):
            result.get(timeout=5)
    assert Job.objects.count() == 3


def test_jobs_that_were_committed_may_be_waited_for_in_a_transaction() -> None:
    waits, completed = sample_tasks.add.delay(1, 2), sample_tasks.add.delay(3, 4)
    Job.objects.filter(pk=completed.id).update(state="completed", result=7, finished_at=Now())
    with transaction.atomic():
        assert completed.get() == 7
        with pytest.raises(TimeoutError) as raised:
            waits.get(timeout=0.01)
        assert not isinstance(raised.value, NotCommitted)
        # What has run inside of it, as in a test, may be asked for as well.
        Job.objects.filter(pk=waits.id).update(state="completed", result=3, finished_at=Now())
        assert waits.get() == 3
