import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import current_app

from devstack.throwaway import Server
from jobs.models import Job
from tests.processes import Processes
from tests.sample_tasks import add, wait_for_file
from tests.waiting import wait_until


def ask_for_events() -> None:
    """As Flower does, again and again. Not by the pool's connection, which may be one to a Redis that was restarted."""
    with current_app.connection_for_write() as connection:
        assert current_app.control.enable_events(reply=True, timeout=20, limit=1, connection=connection)


@contextmanager
def monitor() -> Iterator[list[dict[str, Any]]]:
    """What a monitor such as Flower hears while the block runs."""
    heard: list[dict[str, Any]] = []
    with current_app.connection_for_read() as connection:
        receiver = current_app.events.Receiver(connection, handlers={"*": heard.append})
        thread = threading.Thread(target=receiver.capture, kwargs={"limit": None, "timeout": None})
        thread.start()
        try:
            yield heard
        finally:
            receiver.should_stop = True
            thread.join()


def test_monitors_that_ask_for_it_hear_of_each_step_of_a_job_also_after_redis_was_away(
    processes: Processes, redis_server: Server
) -> None:
    worker = processes.worker("default")
    ask_for_events()
    redis_server.restart()
    wait_until(lambda: worker.output.count("Connected to redis") == 2, timeout=30)
    with monitor() as heard:
        job = add.delay(1, 2)
        wanted = {"task-received", "task-started", "task-succeeded"}
        wait_until(lambda: wanted <= {event["type"] for event in heard if event.get("uuid") == job.id}, timeout=20)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_monitors_hear_how_far_a_job_is_and_then_its_result(processes: Processes, tmp_path: Path, pool: str) -> None:
    gate = tmp_path / "gate"
    processes.worker("default", pool=pool)
    ask_for_events()
    seen = current_app.events.State()
    with monitor() as heard:
        job = wait_for_file.delay(str(gate))
        wait_until(lambda: [event["result"] for event in heard if event["type"] == "task-progress"] == ["10 % waiting"])
        gate.touch()
        wait_until(lambda: "task-succeeded" in {event["type"] for event in heard if event.get("uuid") == job.id})
    for event in heard:
        seen.event(event)
        if event["type"] == "task-progress":
            # What Flower shows.
            assert (seen.tasks[job.id].state, seen.tasks[job.id].result) == ("PROGRESS", event["result"])
    assert (seen.tasks[job.id].state, seen.tasks[job.id].result) == ("SUCCESS", str(Job.objects.get().result))
