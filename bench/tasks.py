"""The task that both sides run: nothing, so that only what surrounds a job is measured."""

from celery import shared_task


@shared_task
def noop() -> None:
    """Does nothing."""
