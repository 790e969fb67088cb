"""Celery's remote commands `revoke` and `terminate`, from a terminal or Flower: they act on the ledger's jobs.

Celery's own remember the id in each worker's memory for hours, and would discard every later run of the job.
"""

import logging
from typing import Any

from celery.utils.functional import maybe_list
from celery.worker import control
from django.db import connections

from jobs import services
from jobs.ids import InvalidJobId, parse_id
from jobs.patience import DATABASE_AWAY, what_happened
from jobs.worker.requests import started

logger = logging.getLogger(__name__)

_of_celery = control.revoke


def revoke(state: Any, task_id: Any, terminate: bool = False, signal: str | None = None, **options: Any) -> Any:
    """Cancels jobs that have not ended; with `terminate`, ends their runs in this worker at once.

    What is no job of the ledger is left to Celery. Called in the worker's main thread, by every worker that hears it:
    the second time nothing is left to do.
    """
    cancelled: list[Any] = []
    foreign: list[Any] = []
    for name in maybe_list(task_id) or []:
        try:
            known = services.revoke_job(job_id=parse_id(name))
        except InvalidJobId:
            known = False
        except DATABASE_AWAY as error:
            return {"error": f"Nothing was revoked: {what_happened(error)}."}
        finally:
            # The main thread forks pool processes: it keeps no connection that they would inherit.
            connections.close_all()
        (cancelled if known else foreign).append(name)
    if foreign:
        _of_celery(state, foreign, terminate=terminate, signal=signal, **options)
    ended = [name for name in cancelled if terminate and _end(state.consumer.pool, name)]
    words = f"cancelled: {', '.join(cancelled) or 'none'}"
    return {"ok": f"{words}; ended here: {', '.join(ended) or 'none'}" if terminate else words}


def _end(pool: Any, task_id: str) -> bool:
    for request in started().values():
        if request.id == task_id:
            try:
                # Pool processes ignore SIGTERM, which is for the worker.
                request.terminate(pool, signal="KILL")
            except NotImplementedError:
                logger.warning("id=%s was cancelled and goes on: a thread cannot be ended.", task_id)
                return False
            return True
    return False


def terminate(state: Any, signal: str, task_id: Any, **options: Any) -> Any:
    """Cancels jobs, and ends their runs in this worker."""
    return revoke(state, task_id, terminate=True, signal=signal, **options)


def install() -> None:
    """Takes the place of Celery's commands in this worker."""
    control.Panel.data.update(revoke=revoke, terminate=terminate)
