"""G05: however often a job is hinted, it runs once."""

from pathlib import Path

import pytest
from celery import current_app

from jobs import publish
from jobs.models import Job
from tests import sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Processes
from tests.waiting import wait_until


@pytest.mark.django_db(transaction=True)
def test_ten_hints_for_one_job_at_two_workers_give_one_run(processes: Processes, tmp_path: Path) -> None:
    file = tmp_path / "lines"
    sample_tasks.append_line.delay(str(file), "x", 1)
    job = Job.objects.get()
    hints = [publish.Hint.of(job) for _ in range(5)]
    with current_app.producer_pool.acquire() as producer:
        publish.in_bulk(current_app, producer, [*hints, *hints])
    for _ in range(2):
        processes.worker("default", concurrency=2)
    wait_until(lambda: Job.objects.get().state == "completed")
    # Every hint was taken, and none of the late ones started anything.
    wait_until(lambda: sum(process.output.count("nothing to claim") for process in processes.started) >= 10)
    assert file.read_text().count("begin ") == 1
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_a_hint_too_many_at_the_same_worker_does_not_end_the_run(processes: Processes, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    worker = processes.worker("default", concurrency=2)
    result = sample_tasks.wait_for_file.delay(str(gate))
    wait_until(lambda: Job.objects.get(pk=result.id).progress_percent == 10)
    with current_app.producer_pool.acquire() as producer:
        publish.in_bulk(current_app, producer, [publish.Hint.of(Job.objects.get())])
    wait_until(lambda: "nothing to claim" in worker.output)
    # Longer than the worker's look at itself takes to miss a run: a lease of 3 s, of which half must pass.
    other = sample_tasks.run_for.delay(4)
    wait_until(lambda: Job.objects.get(pk=other.id).state == "completed", timeout=30)
    gate.touch()
    wait_until(lambda: Job.objects.get(pk=result.id).state == "completed")
    assert Job.objects.get(pk=result.id).stalled_count == 0
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_a_message_of_another_producer_becomes_a_job_once(processes: Processes) -> None:
    message = current_app.amqp.create_task_message(
        "01a20b67-9a24-7497-ab53-2dd40b9ada34", "tests.sample_tasks.add", (1, 2), {}
    )
    with current_app.producer_pool.acquire() as producer:
        for _ in range(2):
            current_app.amqp.send_task_message(producer, "tests.sample_tasks.add", message, queue="default")
    processes.worker("default")
    job = wait_until(lambda: Job.objects.filter(state="completed").first())
    assert (str(job.pk), job.args, job.result) == ("01a20b67-9a24-7497-ab53-2dd40b9ada34", [1, 2], 3)
    assert Job.objects.count() == 1
    assert_ledger_consistent()
