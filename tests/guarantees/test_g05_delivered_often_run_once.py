"""G05: however often a worker is told of a job, it runs once."""

import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from celery import current_app

from jobs.doorbell import Doorbell
from jobs.models import Job
from tests import sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Processes
from tests.variants import variant
from tests.waiting import wait_until


@pytest.fixture
def doorbell(empty_redis: None) -> Iterator[Doorbell]:
    doorbell = Doorbell.patient()
    yield doorbell
    doorbell.close()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("options", [{}, {"concurrency_key": "u", "concurrency_limit": 5}], ids=["unpaced", "paced"])
def test_a_job_of_which_two_workers_are_told_again_and_again_runs_once(
    processes: Processes, doorbell: Doorbell, tmp_path: Path, options: dict[str, object]
) -> None:
    file = tmp_path / "lines"
    for _ in range(2):
        processes.worker("default", concurrency=2)
    sample_tasks.append_line.apply_async((str(file), "x", 1), **options)
    job = Job.objects.get()

    def told_until_it_has_ended() -> bool:
        doorbell.grant("default", {job.pk: 0})
        doorbell.ring("default", 0)
        return Job.objects.get().state == "completed"

    wait_until(told_until_it_has_ended)
    wait_until(lambda: not doorbell.message_counts(["default"])["default"])
    assert file.read_text().count("begin ") == 1
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_a_grant_too_many_at_the_same_worker_does_not_end_the_run(
    processes: Processes, doorbell: Doorbell, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    processes.worker("default", concurrency=2)
    result = sample_tasks.wait_for_file.delay(str(gate))
    wait_until(lambda: Job.objects.get(pk=result.id).progress_percent == 10)
    doorbell.grant("default", {Job.objects.get().pk: 0})
    wait_until(lambda: not doorbell.granted(["default"])["default"])
    # Longer than the worker's look at itself takes to miss a run: a lease of 3 s, of which half must pass.
    other = sample_tasks.run_for.delay(4)
    wait_until(lambda: Job.objects.get(pk=other.id).state == "completed", timeout=30)
    gate.touch()
    wait_until(lambda: Job.objects.get(pk=result.id).state == "completed")
    assert Job.objects.get(pk=result.id).stalled_count == 0
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("pool", ["prefork", variant("threads"), variant("solo")])
def test_a_message_of_another_producer_becomes_a_job_once(processes: Processes, pool: str) -> None:
    message = current_app.amqp.create_task_message(
        "01a20b67-9a24-7497-ab53-2dd40b9ada34", "tests.sample_tasks.add", (1, 2), {}
    )
    with current_app.producer_pool.acquire() as producer:
        for _ in range(2):
            current_app.amqp.send_task_message(producer, "tests.sample_tasks.add", message, queue="default")
    processes.worker("default", pool=pool)
    job = wait_until(lambda: Job.objects.filter(state="completed").first())
    assert (str(job.pk), job.args, job.result) == ("01a20b67-9a24-7497-ab53-2dd40b9ada34", [1, 2], 3)
    assert Job.objects.count() == 1
    assert_ledger_consistent()


class OtherProducer(threading.Thread):
    """Sends messages as plain Celery does, until it is told to end."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []
        self.over = threading.Event()

    def run(self) -> None:
        with current_app.connection_for_write() as connection, connection.Producer() as producer:
            while not self.over.wait(0.02):
                task_id = str(uuid4())
                message = current_app.amqp.create_task_message(task_id, sample_tasks.add.name, (1, 2), {})
                current_app.amqp.send_task_message(producer, sample_tasks.add.name, message, queue="default")
                self.sent.append(task_id)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("pool", ["threads", pytest.param("prefork", marks=pytest.mark.variant)])
def test_messages_of_another_producer_outlive_workers_that_end_in_good_order(processes: Processes, pool: str) -> None:
    producer = OtherProducer()
    producer.start()
    try:
        for _ in range(2):
            worker = processes.worker("default", pool=pool, concurrency=2)
            before = Job.objects.count()
            wait_until(lambda before=before: Job.objects.count() > before + 20)  # type: ignore[misc]
            worker.terminate()
            assert worker.wait() == 0
    finally:
        producer.over.set()
        producer.join()
    processes.worker("default", pool=pool, concurrency=2)
    wait_until(lambda: Job.objects.filter(state="completed").count() == len(producer.sent), timeout=60)
    assert_ledger_consistent()
