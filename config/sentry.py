"""Reports jobs that failed for good to an error tracker that speaks Sentry's protocol, where `SENTRY_DSN` names one.

Nothing else is reported. The SDK's own Celery integration would report attempts that are retried, with their arguments,
and none of the failures that the ledger writes for a process that died.
"""

from typing import Any
from uuid import UUID

import sentry_sdk
from celery.signals import worker_process_init, worker_process_shutdown
from django.conf import settings
from sentry_sdk.integrations.atexit import AtexitIntegration

from jobs.models import Job
from jobs.signals import job_failed

_FLUSH_SECONDS = 2


def start() -> None:
    """Begins to report from this process, to the tracker that `SENTRY_DSN` names."""
    _connect_to_tracker()
    job_failed.connect(report, sender=Job, dispatch_uid="config.sentry")
    # A pool process has inherited a client whose thread it has not: it takes one of its own.
    worker_process_init.connect(_connect_to_tracker, dispatch_uid="config.sentry")
    worker_process_shutdown.connect(_flush, dispatch_uid="config.sentry")


def report(
    *,
    job_id: UUID,
    task: str,
    queue: str,
    attempt: int,
    payload: dict[str, Any],
    error: str,
    traceback: str,
    correlation_id: str,
    **_: Any,
) -> None:
    """Hands the failure to the SDK's thread, which sends it; never waits. One that cannot be sent is dropped."""
    kind, _colon, words = error.partition(": ")
    if not kind.isidentifier():
        # An error that is a sentence of ours.
        kind, words = "Failed", error
    job = {"id": str(job_id), "task": task, "queue": queue, "attempt": attempt, "payload": payload}
    sentry_sdk.capture_event(
        {
            "level": "error",
            "transaction": task,
            "exception": {"values": [{"type": kind, "value": words}]},
            "fingerprint": [task, kind],
            "tags": {"job_id": str(job_id), "task": task, "queue": queue},
            "contexts": {"job": {**job, "correlation_id": correlation_id}},
            "extra": {"traceback": traceback},
        }
    )


def _connect_to_tracker(**_: Any) -> None:
    sentry_sdk.init(
        dsn=settings.SENTRY_DSN,
        default_integrations=False,
        integrations=[AtexitIntegration(callback=lambda pending, timeout: None)],
    )


def _flush(**_: Any) -> None:
    sentry_sdk.flush(timeout=_FLUSH_SECONDS)
