import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import current_app

from devstack.throwaway import Server
from tests.processes import Processes
from tests.sample_tasks import add
from tests.waiting import wait_until


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
    # As Flower does, again and again.
    assert current_app.control.enable_events(reply=True, timeout=20, limit=1)
    redis_server.restart()
    wait_until(lambda: worker.output.count("Connected to redis") == 2, timeout=30)
    with monitor() as heard:
        job = add.delay(1, 2)
        wanted = {"task-received", "task-started", "task-succeeded"}
        wait_until(lambda: wanted <= {event["type"] for event in heard if event.get("uuid") == job.id}, timeout=20)
