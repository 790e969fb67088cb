"""Each process started by hand, in a terminal of its own, without the options that `bin/up` adds."""

from typing import Any

import httpx
import pytest

from devstack.home import BASE_DIR
from devstack.ports import LOOPBACK, free_port
from jobs.models import Duty, Job, Worker
from jobs.queues import QUEUES
from tests import sample_tasks
from tests.processes import Process, Processes
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

# A start needs a second or two of processor time; a busy machine takes its time.
START_SECONDS = 60


def living_worker(process: Process) -> Worker:
    """The row of a worker, once it has one."""

    def row() -> Any:
        assert process.status is None, process.output
        return Worker.objects.filter(pid=process.pid, dead_at__isnull=True).first()

    found: Worker = wait_until(row, timeout=START_SECONDS)
    return found


def serves(process: Process, url: str) -> httpx.Response:
    """The answer of a web server, once it gives one."""

    def answer() -> Any:
        assert process.status is None, process.output
        try:
            return httpx.get(url, trust_env=False)
        except httpx.TransportError:
            return None

    given: httpx.Response = wait_until(answer, timeout=START_SECONDS)
    return given


def test_a_worker_without_options_consumes_every_declared_queue(processes: Processes) -> None:
    worker = processes.start("celery", "-A", "config", "worker", "-I", "tests.sample_tasks")
    for queue in QUEUES:
        sample_tasks.add.apply_async((1, 2), queue=queue)
    row = living_worker(worker)
    assert row.queues == sorted(QUEUES)
    wait_until(lambda: Job.objects.filter(state="completed").count() == len(QUEUES), timeout=START_SECONDS)
    assert set(Job.objects.values_list("queue", "worker_id")) == {(name, row.pk) for name in QUEUES}


def test_workers_of_one_queue_each_run_side_by_side_without_names(processes: Processes) -> None:
    email = processes.start("celery", "-A", "config", "worker", "-Q", "email", "-c", "5")
    crm = processes.start("celery", "-A", "config", "worker", "-Q", "crm", "-c", "1")
    rows = [living_worker(worker) for worker in (email, crm)]
    assert [(row.queues, row.concurrency) for row in rows] == [(["email"], 5), (["crm"], 1)]


def test_beat_ticks(processes: Processes) -> None:
    before = set(BASE_DIR.iterdir())
    beat = processes.start("celery", "-A", "config", "beat")

    def ticked_at() -> object:
        assert beat.status is None, beat.output
        return Duty.objects.filter(name="beat").values_list("ticked_at", flat=True).first()

    first = wait_until(ticked_at, timeout=START_SECONDS)
    wait_until(lambda: ticked_at() != first, timeout=START_SECONDS, reason="beat ticks again")
    # Celery's own scheduler would leave its state in a file here; ours has it in the database.
    assert [path.name for path in set(BASE_DIR.iterdir()) - before if "beat" in path.name] == []


@pytest.mark.parametrize("is_option", [True, False], ids=["option", "environment"])
def test_flower_answers_under_the_path_of_the_admin(processes: Processes, is_option: bool) -> None:
    port = free_port()
    command = ["celery", "-A", "config", "flower", *([f"--port={port}"] if is_option else [])]
    flower = processes.start(*command, env={} if is_option else {"FLOWER_URL": f"http://{LOOPBACK}:{port}"})
    answer = serves(flower, f"http://{LOOPBACK}:{port}/admin/flower/")
    assert answer.status_code == 200
    assert "Flower" in answer.text


def test_runserver_answers(processes: Processes) -> None:
    port = free_port()
    # `python -m manage` is `python manage.py`.
    server = processes.start("manage", "runserver", "--noreload", str(port))
    assert serves(server, f"http://{LOOPBACK}:{port}/livez").text == "alive\n"
    answer = httpx.post(
        f"http://{LOOPBACK}:{port}/signup",
        json={"email": "ada@example.com", "name": "Ada", "password": "correct horse battery"},
        trust_env=False,
    )
    assert answer.status_code == 201, answer.text
    assert Job.objects.get().dedup_key == f"welcome-{answer.json()['id']}"
