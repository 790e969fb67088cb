"""More of what Celery's users know: names, groups, callbacks, callers and messages that are not the ledger's."""

from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Task, chain, current_app, group, shared_task, signature
from celery.exceptions import Reject, TimeoutError
from celery.result import AsyncResult, GroupResult
from celery.signals import after_task_publish, before_task_publish
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.models import User
from jobs import publish, services
from jobs.models import Job
from jobs.testing import run_due_jobs
from tests import sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.jobs.factories import make_job, state_of
from tests.processes import Processes
from tests.third_party.tasks import clean_up
from tests.waiting import wait_until

CALLED: list[Any] = []
DAY = 86400


class Recording(Task):
    """A foreign base class: its tasks stay plain Celery."""


@shared_task(name="billing.charge")
def charge_with_a_name_of_its_own(amount: int) -> int:
    return amount


@shared_task(bind=True, queue="default", ignore_result=True)
def retry_and_ignore_the_result(self: Any) -> int:
    if self.request.retries == 0:
        raise self.retry(countdown=60)
    return 7


@shared_task(queue="default", autoretry_for=(Exception,), dont_autoretry_for=(KeyError,), retry_backoff=1)
def fail_by_kind(kind: str) -> None:
    raise {"key": KeyError("k"), "value": ValueError("v")}[kind]


@shared_task(bind=True, queue="default")
def look_at_its_own_state(self: Any) -> str:
    return str(AsyncResult(self.request.id).state)


@shared_task(base=Recording)
def stay_plain(path: str) -> str:
    Path(path).touch()
    return "plain"


@shared_task(bind=True, queue="default")
def look_at_the_request(self: Any, _: Any) -> None:
    names = ("args", "retries", "parent_id", "root_id", "correlation_id", "callbacks", "eta", "expires", "group")
    CALLED.append({"tenant": self.request.get("tenant"), **{name: self.request.get(name) for name in names}})


@shared_task(bind=True, queue="default")
def retry_elsewhere(self: Any, word: str) -> str:
    if self.request.retries == 0:
        raise self.retry(args=("second",), countdown=60, queue="crm", priority=0, link=sample_tasks.ignore.si())
    return word


def remember(name: str) -> Any:
    def handler(self: Any, *args: Any) -> None:
        CALLED.append((name, *[arg for arg in args if isinstance(arg, (list, dict, int))]))

    return handler


HANDLERS = {name: remember(name) for name in ("on_success", "on_failure", "on_retry", "after_return")}


@shared_task(bind=True, queue="default", max_retries=1, **HANDLERS)
def call_the_handlers(self: Any, end: str, *, factor: int) -> int:
    if end == "fail":
        raise ValueError(end)
    if end == "retry" and self.request.retries == 0:
        raise self.retry(countdown=0)
    return factor


def operator() -> User:
    return User.objects.create_user("operator@example.com", name="Operator", is_staff=True)


# -- In this process --------------------------------------------------------------------------------------------------
@pytest.mark.django_db
def test_a_task_has_the_name_that_it_was_given_and_is_called_by_it() -> None:
    results = [
        charge_with_a_name_of_its_own.delay(1),
        current_app.send_task("billing.charge", (2,), countdown=0),
        current_app.send_task("billing.charge", kwargs={"amount": 3}, queue="crm", priority=9),
        signature("billing.charge", (4,)).apply_async(),
    ]
    assert {job.task for job in run_due_jobs()} == {"billing.charge"}
    assert [result.get(timeout=1) for result in results] == [1, 2, 3, 4]
    assert [Job.objects.get(pk=result.id).queue for result in results] == ["default", "default", "crm", "default"]


@pytest.mark.django_db
def test_a_group_is_so_many_jobs_with_one_result() -> None:
    result = group(sample_tasks.add.s(1, 1), sample_tasks.add.s(2, 2)).apply_async()
    result.save()
    run_due_jobs()
    assert GroupResult.restore(result.id).get(timeout=1) == [2, 4]
    assert {job.group_id for job in Job.objects.all()} == {result.id}


@pytest.mark.django_db
def test_a_chain_may_end_in_a_group() -> None:
    result = chain(sample_tasks.add.s(1, 1), group(sample_tasks.add.s(10), sample_tasks.add.s(20))).apply_async()
    run_due_jobs()
    assert result.get(timeout=1) == [12, 22]


@pytest.mark.django_db
def test_map_starmap_and_chunks_are_jobs() -> None:
    pairs = [(1, 1), (2, 2), (3, 3)]
    starmap, chunks = sample_tasks.add.starmap(pairs).apply_async(), sample_tasks.add.chunks(pairs, 2).apply_async()
    mapped = charge_with_a_name_of_its_own.map([1, 2]).apply_async()
    assert [job.state for job in run_due_jobs()] == ["completed"] * 4
    assert starmap.get(timeout=1) == [2, 4, 6]
    assert chunks.get(timeout=1) == [[2, 4], [6]]
    assert mapped.get(timeout=1) == [1, 2]


@pytest.mark.django_db
def test_a_request_knows_its_run_and_its_callers_headers() -> None:
    CALLED.clear()
    parent = chain(sample_tasks.add.s(1, 1), look_at_the_request.s()).apply_async(headers={"tenant": "north"})
    result = look_at_the_request.apply_async(
        (0,), headers={"tenant": "south"}, correlation_id="c-1", link=sample_tasks.add.si(1, 1)
    )
    run_due_jobs()
    (alone,) = [seen for seen in CALLED if seen["correlation_id"] == "c-1"]
    assert (alone["tenant"], alone["retries"], alone["args"]) == ("south", 0, [0])
    assert (alone["root_id"], alone["parent_id"]) == (result.id, None)
    assert (alone["callbacks"], alone["eta"], alone["expires"], alone["group"]) == (None, None, None, None)
    (step,) = [seen for seen in CALLED if seen is not alone]
    assert step["parent_id"] == step["root_id"] == parent.parent.id


@pytest.mark.django_db
def test_a_request_knows_when_it_was_due_where_that_was_later_than_its_call() -> None:
    CALLED.clear()
    look_at_the_request.apply_async((0,), countdown=60)
    run_due_jobs(ahead=timedelta(minutes=2))
    (seen,) = CALLED
    assert datetime.fromisoformat(seen["eta"]) == Job.objects.get().run_at


@pytest.mark.django_db
def test_a_retry_moves_a_job_in_time_and_changes_its_arguments_and_nothing_else() -> None:
    result = retry_elsewhere.apply_async(("first",), link=sample_tasks.add.si(1, 1))
    (job,) = run_due_jobs()
    assert (job.state, job.queue, job.priority, job.args) == ("delayed", "default", 5, ["second"])
    assert [ran.result for ran in run_due_jobs(ahead=timedelta(hours=1))] == ["second", 2]
    assert result.get(timeout=1) == "second"


@pytest.mark.django_db
def test_a_job_may_lie_for_a_month_and_expires_where_it_lies() -> None:
    soon, late, too_late = (
        sample_tasks.add.apply_async((1, 2), countdown=30 * DAY),
        sample_tasks.add.apply_async((3, 4), eta=timezone.now() + timedelta(days=400), expires=401 * DAY),
        sample_tasks.add.apply_async((5, 6), countdown=30 * DAY, expires=29 * DAY),
    )
    assert run_due_jobs(ahead=timedelta(days=29)) == []
    assert [job.result for job in run_due_jobs(ahead=timedelta(days=500))] == [3, 7]
    assert [one.state for one in (soon, late, too_late)] == ["SUCCESS", "SUCCESS", "REVOKED"]


@pytest.mark.django_db
def test_stamps_are_headers_of_their_job() -> None:
    stamped = sample_tasks.headers_seen.s()
    stamped.stamp(tenant="north")
    whole = chain(stamped, sample_tasks.echo.s()).apply_async()
    run_due_jobs()
    kept = Job.objects.get(task=sample_tasks.headers_seen.name).headers
    assert whole.get(timeout=1) == kept == {"tenant": "north", "stamped_headers": ["tenant"]}


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("empty_redis")
def test_no_signal_tells_of_a_message_where_a_job_is_enqueued() -> None:
    told: list[Any] = []

    def receive(sender: Any = None, **_: Any) -> None:
        told.append(sender)

    for signal in (before_task_publish, after_task_publish):
        signal.connect(receive)
    try:
        for options in ({}, {"queue": "email"}, {"countdown": 60}, {"link": sample_tasks.ignore.si()}):
            sample_tasks.add.apply_async((1, 2), **options)
        group(sample_tasks.add.s(1, 2), sample_tasks.add.s(3, 4)).apply_async()
        run_due_jobs()
        assert told == []
        stay_plain.delay("nowhere")
    finally:
        for signal in (before_task_publish, after_task_publish):
            signal.disconnect(receive)
    assert told == [stay_plain.name, stay_plain.name]


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("empty_redis")
def test_a_purge_removes_messages_of_other_producers_and_no_jobs() -> None:
    results = [sample_tasks.add.apply_async((1, 2), **options) for options in ({}, {"queue": "email"})]
    delayed = sample_tasks.add.apply_async((1, 2), countdown=60)
    for _ in range(3):
        stay_plain.delay("nowhere")
    assert current_app.control.purge() == 3
    run_due_jobs()
    assert [result.state for result in (*results, delayed)] == ["SUCCESS", "SUCCESS", "PENDING"]


@pytest.mark.django_db
def test_a_job_that_runs_has_started() -> None:
    result = look_at_its_own_state.delay()
    assert result.state == "PENDING"
    run_due_jobs()
    assert (result.state, result.result) == ("SUCCESS", "STARTED")


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("empty_redis")
def test_whoever_waits_for_a_result_asks_soon_at_first_and_then_more_and_more_seldom(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = sample_tasks.add.delay(1, 2)
    naps: list[float] = []
    clock = SimpleNamespace(sleep=naps.append, monotonic=lambda: sum(naps))
    monkeypatch.setattr("jobs.backend.time", clock)
    with CaptureQueriesContext(connection) as queries, pytest.raises(TimeoutError):
        result.get(timeout=60)
    assert (naps[0], max(naps), round(sum(naps), 3)) == (0.02, 0.5, 60)
    assert naps[:-1] == sorted(naps[:-1])
    assert len(queries) == len(naps) + 1 < 180


@pytest.mark.django_db
@pytest.mark.parametrize("task_id", ["01a20b67-9a24-7497-ab53-2dd40b9ada34", "no id at all", ""])
def test_what_no_job_has_as_its_id_is_pending(task_id: str) -> None:
    assert AsyncResult(task_id).state == "PENDING"
    assert AsyncResult(task_id).result is None


@pytest.mark.django_db
def test_a_result_does_not_expire_by_itself_and_knows_no_other_job() -> None:
    result = sample_tasks.enqueue_child.apply_async((1,), link=sample_tasks.echo.s())
    run_due_jobs()
    Job.objects.update(finished_at=Now() - timedelta(days=365))
    current_app.tasks["celery.backend_cleanup"]()
    current_app.backend.cleanup()
    found = AsyncResult(result.id)
    assert (found.state, found.result) == ("SUCCESS", Job.objects.get(pk=result.id).result)
    assert not found.children
    assert list(found.collect()) == [(found, found.result)]
    assert list(found.graph.items()) == [(found, [])]


@pytest.mark.django_db
@pytest.mark.parametrize("end", ["SUCCESS", "FAILURE"])
def test_a_call_that_wants_no_result_has_a_state_and_an_error_all_the_same(end: str) -> None:
    task = sample_tasks.echo if end == "SUCCESS" else sample_tasks.raise_error
    result = task.apply_async((7,), ignore_result=True)
    run_due_jobs()
    found = AsyncResult(result.id)
    assert found.state == end
    assert str(found.result) == ("None" if end == "SUCCESS" else "7")
    assert Job.objects.get().result is None


@pytest.mark.django_db
def test_where_all_is_eager_nothing_is_a_job() -> None:
    current_app.conf.task_always_eager = True
    try:
        assert sample_tasks.add.delay(1, 2).get() == 3
        assert chain(sample_tasks.add.s(1, 2), sample_tasks.add.s(10)).apply_async().get() == 13
        assert group(sample_tasks.add.s(1, 2), sample_tasks.add.s(3, 4)).apply_async().get() == [3, 7]
    finally:
        current_app.conf.task_always_eager = False
    assert not Job.objects.exists()


@pytest.mark.django_db
def test_a_shared_task_of_a_third_party_is_a_job_of_the_default_queue() -> None:
    clean_up.delay(days=3)
    assert [(job.queue, job.result) for job in run_due_jobs()] == [("default", "removed what is older than 3 days")]


@pytest.mark.django_db
def test_a_rejected_job_raises_what_its_body_has_raised() -> None:
    results = [sample_tasks.reject.delay(requeue) for requeue in (False, True)]
    run_due_jobs()
    for result, requeue in zip(results, (False, True), strict=True):
        with pytest.raises(Reject) as raised:
            result.get(timeout=1)
        assert (result.state, raised.value.reason, raised.value.requeue) == ("FAILURE", "not mine", requeue)


@pytest.mark.django_db
def test_a_task_id_of_the_caller_finds_the_result() -> None:
    task_id = "01a20b67-9a24-7497-ab53-2dd40b9ada34"
    sample_tasks.add.apply_async((1, 2), task_id=task_id)
    run_due_jobs()
    result = AsyncResult(task_id)
    assert (result.state, result.result, result.name, result.args) == ("SUCCESS", 3, sample_tasks.add.name, [1, 2])
    assert result.date_done is not None
    result.forget()
    assert AsyncResult(task_id).result is None
    assert state_of(task_id) == "completed"


@pytest.mark.django_db
def test_a_retry_of_a_task_that_ignores_its_result_is_written() -> None:
    result = retry_and_ignore_the_result.delay()
    (job,) = run_due_jobs()
    assert (job.state, job.attempt, result.state) == ("delayed", 2, "RETRY")
    Job.objects.update(run_at=Now())
    (job,) = run_due_jobs()
    assert (job.state, job.result, AsyncResult(result.id).state) == ("completed", None, "SUCCESS")


@pytest.mark.django_db
def test_an_exception_that_is_not_to_be_retried_fails_at_once() -> None:
    results = [fail_by_kind.delay(kind) for kind in ("key", "value")]
    run_due_jobs()
    assert [(state_of(result.id), Job.objects.get(pk=result.id).attempt) for result in results] == [
        ("failed", 1),
        ("delayed", 2),
    ]


@pytest.mark.django_db
def test_handlers_are_called_with_the_arguments_of_the_row() -> None:
    CALLED.clear()
    call_the_handlers.delay("return", factor=5)
    run_due_jobs()
    assert CALLED == [("on_success", 5, ["return"], {"factor": 5}), ("after_return", 5, ["return"], {"factor": 5})]
    CALLED.clear()
    call_the_handlers.delay("fail", factor=5)
    call_the_handlers.delay("retry", factor=6)
    run_due_jobs()
    assert [name for name, *_ in CALLED] == [
        *("on_failure", "after_return"),
        # As in Celery, a retry is no return.
        *("on_retry", "on_success", "after_return"),
    ]


@pytest.mark.django_db
def test_an_edited_job_runs_what_its_row_says() -> None:
    result = sample_tasks.add.delay(1, 2)
    Job.objects.update(args=[30, 4])
    run_due_jobs()
    assert result.get(timeout=1) == 34


@pytest.mark.django_db
def test_a_job_that_expired_is_revoked() -> None:
    result = sample_tasks.add.apply_async((1, 2), expires=60)
    Job.objects.update(expires_at=Now())
    assert run_due_jobs() == []
    assert result.state == "REVOKED"


@pytest.mark.django_db
def test_a_worker_that_would_take_more_than_it_runs_is_refused(settings: Any) -> None:
    before = current_app.conf.worker_prefetch_multiplier
    current_app.conf.worker_prefetch_multiplier = 4
    try:
        with pytest.raises(SystemCheckError, match="WORKER_PREFETCH_MULTIPLIER is 4; the ledger needs 1"):
            call_command("check")
    finally:
        current_app.conf.worker_prefetch_multiplier = before


# -- With a worker ----------------------------------------------------------------------------------------------------
@pytest.mark.django_db(transaction=True)
def test_celery_call_enqueues_a_task_of_the_project(processes: Processes) -> None:
    call = processes.start(
        "celery", "-A", "config", "call", "notifications.tasks.send_welcome", "--kwargs", '{"user_id": 7}'
    )
    assert call.wait() == 0, call.output
    job = Job.objects.get()
    assert (job.task, job.queue, job.kwargs, job.state) == (
        "notifications.tasks.send_welcome",
        "email",
        {"user_id": 7},
        "waiting",
    )
    assert str(job.pk) in call.output


@pytest.mark.django_db(transaction=True)
def test_a_task_with_a_foreign_base_class_stays_plain_celery(processes: Processes, tmp_path: Path) -> None:
    worker = processes.worker("default", include=("tests.sample_tasks", "tests.jobs.test_celery_api"))
    plain = stay_plain.delay(str(tmp_path / "ran"))
    wait_until((tmp_path / "ran").exists)
    assert not Job.objects.exists()
    result = sample_tasks.add.delay(1, 2)
    assert result.get(timeout=30) == 3
    assert "Traceback" not in worker.output
    assert stay_plain.name not in worker.output
    assert plain.state == "PENDING"


@pytest.mark.django_db(transaction=True)
def test_messages_for_unregistered_tasks_end_neither_the_worker_nor_their_jobs(processes: Processes) -> None:
    worker = processes.worker("default")
    lost = make_job(task="gone.task", priority=0)
    before = Job.objects.filter(pk=lost.pk).values().get()
    publish.soon(publish.Ring.of(lost))
    foreign = current_app.amqp.create_task_message("01a20b67-9a24-7497-ab53-2dd40b9ada34", "gone.too", (), {})
    with current_app.producer_pool.acquire() as producer:
        current_app.amqp.send_task_message(producer, "gone.too", foreign, queue="default")
    wait_until(lambda: "gone.too" in worker.output)
    assert sample_tasks.add.delay(1, 2).get(timeout=30) == 3
    assert worker.status is None
    # Another worker may know it.
    assert Job.objects.filter(pk=lost.pk).values().get() == before
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_a_cancelled_job_that_an_operator_runs_again_runs_on_the_same_worker(
    processes: Processes, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    processes.worker("default", concurrency=2)
    result = sample_tasks.wait_for_file.delay(str(gate))
    wait_until(lambda: Job.objects.get().progress_percent == 10)
    services.cancel_job(job_id=Job.objects.get().pk, actor=operator())
    assert result.state == "REVOKED"
    services.retry_job(job_id=Job.objects.get().pk, actor=User.objects.get())
    wait_until(lambda: Job.objects.get().state == "active")
    gate.touch()
    wait_until(lambda: Job.objects.get().state == "completed")
