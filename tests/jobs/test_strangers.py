"""Messages of other producers, as kombu delivers them: each becomes a job before it is acknowledged."""

import json
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from celery import current_app
from django.utils import timezone
from kombu.message import Message

from jobs import dead_letters
from jobs.ids import derived_id
from jobs.models import Job
from jobs.worker.strangers import Stranger
from tests.jobs.factories import make_job
from tests.sample_tasks import add

pytestmark = pytest.mark.django_db
HOUR = timedelta(hours=1)


class Delivery:
    """A message on its way, and what became of it."""

    def __init__(self, *, headers: dict[str, Any], body: Any, priority: int | None = None) -> None:
        self.outcome: list[str] = []
        properties = {} if priority is None else {"priority": priority}
        message = Message(
            body=json.dumps(body),
            headers=headers,
            properties=properties,
            content_type="application/json",
            content_encoding="utf-8",
        )
        # Celery has read the body of a message of its first protocol already, and hands it on.
        read = body if isinstance(body, dict) else None
        self.stranger = Stranger(add, message, read, self._note("acknowledged"), self._note("rejected"))

    def _note(self, outcome: str) -> Any:
        return lambda *_: self.outcome.append(outcome)


def delivery(task_id: str, args: Any = (1, 2), kwargs: Any = None, **options: Any) -> Delivery:
    """Of Celery's present protocol."""
    priority = options.pop("priority", None)
    made = current_app.amqp.as_task_v2(task_id, add.name, args, kwargs or {}, **options)
    return Delivery(headers=made.headers, body=made.body, priority=priority)


def test_a_message_becomes_a_job_under_its_own_id_and_is_acknowledged() -> None:
    job_id = uuid4()
    came = delivery(str(job_id), (1,), {"y": 2}, priority=3)
    came.stranger.become_a_job()
    job = Job.objects.get()
    assert (job.pk, job.task, job.args, job.kwargs) == (job_id, add.name, [1], {"y": 2})
    assert (job.queue, job.priority, job.state) == ("default", 3, "waiting")
    assert came.outcome == ["acknowledged"]


def test_a_message_that_is_delivered_again_makes_no_second_job_whatever_has_become_of_the_first() -> None:
    job_id = uuid4()
    for _ in range(2):
        came = delivery(str(job_id))
        came.stranger.become_a_job()
        assert came.outcome == ["acknowledged"]
        Job.objects.update(state="completed", finished_at=timezone.now())
    assert [(job.pk, job.state) for job in Job.objects.all()] == [(job_id, "completed")]


def test_an_id_that_is_no_uuid_always_gives_the_same_job() -> None:
    for _ in range(2):
        delivery("order-7").stranger.become_a_job()
    assert Job.objects.get().pk == derived_id("foreign", "order-7")


def test_what_a_message_says_of_its_time_holds_for_its_job() -> None:
    due_at = timezone.now() + HOUR
    came = delivery(str(uuid4()), eta=due_at, expires=due_at + HOUR, time_limit=50, soft_time_limit=40)
    came.stranger.become_a_job()
    job = Job.objects.get()
    assert (job.state, job.run_at, job.expires_at) == ("delayed", due_at, due_at + HOUR)
    assert (job.time_limit_seconds, job.soft_time_limit_seconds) == (50, 40)


def test_a_message_of_celerys_first_protocol_becomes_a_job_too() -> None:
    job_id = str(uuid4())
    body = {"id": job_id, "task": add.name, "args": [1], "kwargs": {"y": 2}, "timelimit": [None, None]}
    came = Delivery(headers={}, body=body)
    came.stranger.become_a_job()
    job = Job.objects.get()
    assert (job.pk, job.args, job.kwargs) == (UUID(job_id), [1], {"y": 2})
    assert came.outcome == ["acknowledged"]


@pytest.mark.parametrize(
    "came",
    [
        delivery(str(uuid4()), (1, 2, 3, 4, 5)),
        delivery(str(uuid4()), priority=77),
        Delivery(headers={"id": str(uuid4())}, body="no list of three"),
        Delivery(headers={"id": str(uuid4())}, body=[7, "odd", None]),
    ],
    ids=["wrong arguments", "wrong priority", "no payload", "odd payload"],
)
def test_a_message_that_is_no_job_is_put_aside_and_said(
    came: Delivery, caplog: pytest.LogCaptureFixture, empty_redis: None
) -> None:
    came.stranger.become_a_job()
    assert came.outcome == ["rejected"]
    assert not Job.objects.exists()
    assert f"is no job of {add.name}" in caplog.text
    assert [json.loads(one.message)["body"] for one in dead_letters.letters()] == [came.stranger.message.body]


def test_a_message_with_the_id_of_a_job_of_the_ledger_changes_nothing_of_it() -> None:
    job = make_job(args=[5, 6])
    before = Job.objects.values().get()
    delivery(str(job.pk)).stranger.become_a_job()
    assert Job.objects.values().get() == before
