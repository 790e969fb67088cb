"""Enqueueing: what is refused, what is written, and in whose transaction."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from celery import current_app
from django.db import connections, transaction
from django.utils import timezone

from jobs import options
from jobs.app import LedgerCelery, UnknownTask
from jobs.enqueue import NotSupported, PayloadNotJSON, PayloadTooLarge
from jobs.ids import InvalidJobId
from jobs.models import Job
from jobs.queues import UnknownQueue
from tests import sample_tasks
from tests.jobs.factories import make_job, state_of


class Abandoned(Exception):
    """Rolls a transaction back."""


def count_jobs() -> int:
    """As another session sees them."""
    try:
        return Job.objects.count()
    finally:
        connections.close_all()


@pytest.mark.django_db(transaction=True)
def test_a_job_is_part_of_the_callers_transaction() -> None:
    with transaction.atomic():
        result = sample_tasks.add.delay(1, 2)
        with ThreadPoolExecutor(1) as elsewhere:
            assert elsewhere.submit(count_jobs).result() == 0
    assert Job.objects.get().pk.hex == result.id.replace("-", "")


@pytest.mark.django_db(transaction=True)
def test_a_rolled_back_transaction_leaves_no_job() -> None:
    def enqueue_and_fail() -> None:
        with transaction.atomic():
            sample_tasks.add.delay(1, 2)
            raise Abandoned

    with pytest.raises(Abandoned):
        enqueue_and_fail()
    with transaction.atomic():
        with pytest.raises(Abandoned):
            enqueue_and_fail()
        sample_tasks.add.delay(3, 4)
    assert Job.objects.get().args == [3, 4]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: sample_tasks.add.delay(1), TypeError, "missing 1 required positional argument: 'y'"),
        (lambda: sample_tasks.add.delay(1, object()), PayloadNotJSON, "tests.sample_tasks.add: .* not JSON"),
        (lambda: sample_tasks.add.delay(1, float("nan")), PayloadNotJSON, "not JSON"),
        (lambda: sample_tasks.add.delay(1, "\0"), PayloadNotJSON, "NUL"),
        (lambda: sample_tasks.add.delay(1, "\ud800"), PayloadNotJSON, "half a character"),
        (lambda: sample_tasks.add.delay(1, {"\udcff": 2}), PayloadNotJSON, "half a character"),
        (lambda: sample_tasks.add.delay(1, "x" * 300_000), PayloadTooLarge, "more than 262144. Pass ids"),
        (lambda: sample_tasks.add.apply_async((1, 2), queue="emial"), UnknownQueue, "'emial'.*crm, default, email"),
        (lambda: sample_tasks.add.apply_async((1, 2), priority=11), ValueError, "priority=11: expected 0 to 9"),
        (lambda: sample_tasks.add.apply_async((1, 2), task_id="seven"), InvalidJobId, "'seven' is not a UUID"),
        (lambda: sample_tasks.add.apply_async((1, 2), dedupkey="x"), TypeError, "unknown options dedupkey"),
        (lambda: sample_tasks.add.apply_async((1, 2), dedup_key=""), ValueError, "dedup_key=''"),
        (lambda: sample_tasks.add.apply_async((1, 2), routing_key="a.b"), NotSupported, "routing_key"),
        (lambda: sample_tasks.add.apply_async((1, 2), exchange="a"), NotSupported, "exchange.*by queue="),
        (lambda: sample_tasks.add.apply_async((1, {1}), serializer="pickle"), PayloadNotJSON, "not JSON"),
        (lambda: sample_tasks.add.apply_async((1, 2), time_limit=1, soft_time_limit=2), ValueError, "longer than"),
        (lambda: current_app.send_task("tests.sample_tasks.ad", (1, 2)), UnknownTask, "tests.sample_tasks.add"),
        (lambda: current_app.send_task("tests.sample_tasks.add", (1,)), TypeError, "'y'"),
    ],
)
def test_a_wrong_call_is_refused_in_words_before_anything_is_written(call: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        call()
    assert not Job.objects.exists()


@pytest.mark.django_db
def test_a_delay_is_a_time_in_the_row() -> None:
    by_countdown = sample_tasks.add.apply_async((1, 2), countdown=60)
    by_eta = sample_tasks.add.apply_async((1, 2), eta=timezone.now() + timedelta(minutes=1))
    past = sample_tasks.add.apply_async((1, 2), eta=timezone.now() - timedelta(minutes=1))
    for result in (by_countdown, by_eta):
        job = Job.objects.get(pk=result.id)
        assert job.state == "delayed"
        assert timedelta(seconds=50) < job.run_at - timezone.now() < timedelta(seconds=70)
    assert state_of(past.id) == "waiting"


@pytest.mark.django_db
@pytest.mark.parametrize("option", sorted(options.IRRELEVANT - {"result_cls"}))
def test_what_says_how_a_message_is_to_travel_means_nothing(option: str) -> None:
    plain, said = sample_tasks.add.delay(1, 2), sample_tasks.add.apply_async((1, 2), **{option: "anything"})
    rows: dict[str, dict[str, Any]] = {str(row["id"]): {**row} for row in Job.objects.values()}
    # What each job has for itself.
    own = {"id", "created_at", "run_at", "correlation_id"}
    assert {name for name, value in rows[said.id].items() if value != rows[plain.id][name]} == own


@pytest.mark.django_db
def test_a_dedup_key_gives_the_job_that_is_there() -> None:
    first = sample_tasks.add.apply_async((1, 2), dedup_key="sum", countdown=60)
    second = sample_tasks.add.apply_async((3, 4), dedup_key="sum")
    assert first.id == second.id
    assert Job.objects.get().args == [1, 2]


@pytest.mark.django_db
def test_a_dedup_key_is_free_again_when_its_job_has_ended() -> None:
    make_job(dedup_key="sum", state="completed")
    sample_tasks.add.apply_async((1, 2), dedup_key="sum")
    assert Job.objects.filter(dedup_key="sum").count() == 2


@pytest.mark.django_db(transaction=True)
def test_a_second_caller_waits_for_an_uncommitted_job_with_its_key() -> None:
    inserted, committed = threading.Event(), threading.Event()

    def first() -> str:
        try:
            with transaction.atomic():
                result = sample_tasks.add.apply_async((1, 2), dedup_key="sum")
                inserted.set()
                assert committed.wait(10)
            return result.id
        finally:
            connections.close_all()

    def second() -> str:
        try:
            assert inserted.wait(10)
            # Nobody is told when this call starts to wait; the first transaction ends only after it was begun.
            committed.set()
            return sample_tasks.add.apply_async((1, 2), dedup_key="sum").id
        finally:
            connections.close_all()

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.submit(first), pool.submit(second)
        assert one.result() == other.result()
    assert Job.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_many_callers_with_one_key_make_one_job() -> None:
    def call(_: int) -> str:
        try:
            return sample_tasks.add.apply_async((1, 2), dedup_key="sum", countdown=60).id
        finally:
            connections.close_all()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(call, range(80)))) == 1
    assert Job.objects.count() == 1


@pytest.mark.django_db
def test_the_same_task_id_twice_is_one_job() -> None:
    first = sample_tasks.add.apply_async((1, 2), task_id="01a20b67-9a24-7497-ab53-2dd40b9ada34")
    second = sample_tasks.add.apply_async((3, 4), task_id=first.id)
    assert second.id == first.id
    assert Job.objects.get().args == [1, 2]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("task", "options", "attempts"),
    [
        (sample_tasks.fail_until, {"max_attempts": 7}, 7),
        (sample_tasks.fail_until, {"queue": "webhooks"}, 3),
        (sample_tasks.add, {"queue": "webhooks"}, 5),
        (sample_tasks.add, {"queue": "reports"}, 1),
    ],
    ids=["the call's", "the task's", "the queue's", "one for reports"],
)
def test_attempts_come_from_the_call_then_the_task_then_the_queue(task: Any, options: Any, attempts: int) -> None:
    args = (1,) if task is sample_tasks.fail_until else (1, 2)
    assert Job.objects.get(pk=task.apply_async(args, **options).id).max_attempts == attempts


@pytest.mark.django_db
def test_what_celerys_annotations_say_of_a_task_is_what_it_declares() -> None:
    annotations = {"annotated": {"max_retries": 6, "queue": "crm", "priority": 1, "rate_limit": "5/m"}}
    app = LedgerCelery("annotated", set_as_current=False)
    app.config_from_object(SimpleNamespace(CELERY_TASK_ANNOTATIONS=annotations), namespace="CELERY")

    @app.task(name="annotated", max_retries=1)
    def annotated() -> None:
        """Nothing."""

    app.finalize()
    job = Job.objects.get(pk=annotated.delay().id)
    assert (job.max_attempts, job.queue, job.priority, job.rate_limit) == (7, "crm", 1, "5/m")


@pytest.mark.django_db
def test_what_is_assigned_to_a_task_holds_for_the_calls_that_follow() -> None:
    app = LedgerCelery("assigned", set_as_current=False)
    app.config_from_object(SimpleNamespace(), namespace="CELERY")

    @app.task(name="assigned", max_retries=1)
    def assigned() -> None:
        """Nothing."""

    for name, value in {"max_retries": 6, "queue": "crm", "priority": 1, "retry_backoff": 3}.items():
        setattr(assigned, name, value)
    job = Job.objects.get(pk=assigned.delay().id)
    assert (job.max_attempts, job.queue, job.priority) == (7, "crm", 1)
    assert assigned.retry_backoff == 3


def test_a_job_is_acknowledged_at_its_end_whatever_a_task_declares() -> None:
    app = LedgerCelery("early", set_as_current=False)
    app.config_from_object(SimpleNamespace(CELERY_TASK_ANNOTATIONS={"*": {"acks_late": False}}), namespace="CELERY")

    @app.task(name="early", acks_late=False)
    def early() -> None:
        """Nothing."""

    app.finalize()
    assert early.acks_late is True


@pytest.mark.django_db
def test_time_limits_come_from_the_call_then_the_queue() -> None:
    by_queue = Job.objects.get(pk=sample_tasks.add.apply_async((1, 2), queue="reports").id)
    by_call = Job.objects.get(pk=sample_tasks.add.apply_async((1, 2), time_limit=5).id)
    assert (by_queue.soft_time_limit_seconds, by_queue.time_limit_seconds) == (600, 660)
    assert (by_call.soft_time_limit_seconds, by_call.time_limit_seconds) == (5, 5)


@pytest.mark.django_db
def test_a_job_without_priority_gets_the_default_one() -> None:
    assert Job.objects.get(pk=sample_tasks.add.delay(1, 2).id).priority == current_app.conf.task_default_priority


@pytest.mark.django_db
def test_a_direct_call_and_an_eager_one_touch_no_ledger() -> None:
    assert sample_tasks.add(1, 2) == 3
    assert sample_tasks.add.apply((1, 2)).get() == 3
    assert sample_tasks.report_progress.apply().get() == "done"
    assert not Job.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_asynchronous_callers_have_their_own_call() -> None:
    async def call() -> bool:
        result = await sample_tasks.add.adelay(1, 2)
        return await Job.objects.filter(pk=result.id).aexists()

    assert async_to_sync(call)()
