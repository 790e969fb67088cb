"""Tasks of odd jobs."""

from typing import Any

from celery import shared_task


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


@shared_task(queue="default")
def stubborn() -> None:
    """Of a row that PostgreSQL lets nobody change: it never runs."""


ODD = (odd.name, stubborn.name)
