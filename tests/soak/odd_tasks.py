"""Tasks of odd jobs."""

from typing import Any

from celery import shared_task

from tests.hostile_tasks import LEFT, LOST, RAISED


@shared_task(bind=True, queue="default", max_retries=0)
def odd(self: Any, what: Any = None, value: Any = None, *more: Any) -> Any:
    """Ends in the way that it is told."""
    match what:
        case "raise":
            raise ValueError(value)
        case "raise NUL":
            raise ValueError("\0")
        case "raise large":
            raise ValueError("x" * value)
        case "return large":
            return "x" * value
        case "retry far away":
            raise self.retry(countdown=10**12, max_retries=5)
        case _:
            return value


def _do(how: str, what: str) -> None:
    {"raise": RAISED, "leave": LEFT, "lose": LOST}[how][what]()


@shared_task(queue="default", max_retries=0)
def hostile(how: str, what: str) -> None:
    """Does with its connection, or raises, what no body should."""
    _do(how, what)


@shared_task(queue="default", max_retries=0, atomic=True)
def hostile_atomically(how: str, what: str) -> None:
    """The same, inside the transaction of its job's end."""
    _do(how, what)


@shared_task(queue="default")
def stubborn() -> None:
    """Of a row that PostgreSQL lets nobody change: it never runs."""


ENDING = (odd.name, hostile.name, hostile_atomically.name)
ODD = (*ENDING, stubborn.name)
