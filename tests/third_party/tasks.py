"""The tasks of an app that somebody else has published, and that knows nothing of the ledger."""

from celery import shared_task


@shared_task
def clean_up(days: int = 7) -> str:
    """What such apps do at night."""
    return f"removed what is older than {days} days"
