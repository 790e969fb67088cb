"""The tasks that are measured: they do next to nothing, so that what surrounds a job is measured."""

import time

from celery import shared_task

from bench.rows import NAP_SECONDS


@shared_task
def noop() -> None:
    """Does nothing."""


@shared_task
def nap() -> None:
    """Waits for twenty milliseconds, as for a server that answers."""
    time.sleep(NAP_SECONDS)


@shared_task
def moment() -> float:
    """When the body of the task began, in seconds of this machine's clock."""
    return time.time()
