"""Jobs whose task this worker does not know, because it runs another version than whoever enqueued them.

Celery drops the message, and the dispatcher would hint again at once, for ever. The job waits for a while instead, each
time for longer, so that others are not held up, and is then anybody's.
"""

import logging
from typing import Any

from celery.signals import task_unknown
from django.db import connections

from jobs import settle
from jobs.ids import InvalidJobId, parse_id
from jobs.patience import DATABASE_AWAY, patiently

logger = logging.getLogger(__name__)

_PATIENCE_SECONDS = 1


def postpone(message: Any = None, name: str = "", **_: Any) -> None:
    """Called by Celery, in the worker's main thread. Never raises."""
    headers = getattr(message, "headers", None) or {}
    if not headers.get("hint_id"):
        # Of another producer, so no job of the ledger.
        return
    try:
        job_id = parse_id(headers.get("id"))
        if patiently(lambda _: settle.refuse(job_id, task=name), seconds=_PATIENCE_SECONDS):
            logger.warning("id=%s waits: its task %s is not known here", job_id, name)
    except (InvalidJobId, *DATABASE_AWAY) as error:
        logger.error("id=%s of unknown task %s could not be postponed (%s)", headers.get("id"), name, error)
    finally:
        # The main thread forks pool processes: it keeps no connection that they would inherit.
        connections.close_all()


def install() -> None:
    """Listens from now on."""
    task_unknown.connect(postpone, weak=False)
