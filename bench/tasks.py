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


@shared_task
def give(value: int) -> int:
    """A member of a canvas."""
    return value


@shared_task
def one_more(number: int) -> int:
    """A step of a chain."""
    return number + 1


@shared_task
def sum_up(numbers: list[int]) -> int:
    """The body of a chord."""
    return sum(numbers)
