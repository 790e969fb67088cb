"""What holds where a project's settings say nothing: the ledger's own, and Celery's where its defaults will not do.

Read before Django is set up.
"""

from typing import Any

from kombu import Queue

from jobs.queues import QUEUES

# `docs/environment.md` says what each is.
JOBS: dict[str, Any] = {
    "JOBS_LEASE_SECONDS": 20,
    "JOBS_HEARTBEAT_SECONDS": 5,
    "JOBS_GRACE_SECONDS": 30,
    "JOBS_CANCEL_GRACE_SECONDS": 10,
    "JOBS_DISPATCH_SECONDS": 0.4,
    "JOBS_LOG_LINES": 1000,
    "JOBS_LOG_BYTES": 256 * 1024,
    "JOBS_PAYLOAD_MAX_BYTES": 256 * 1024,
    "JOBS_RESULT_MAX_BYTES": 1024 * 1024,
}

# Without these, messages of other producers are not where the ledger looks for them, or are kept twice.
BROKER_TRANSPORT_OPTIONS: dict[str, Any] = {
    # No copies of taken messages in Redis, nor a clock that delivers them again: the ledger's leases find lost jobs.
    "ack_emulation": False,
    "priority_steps": list(range(10)),
    "sep": ":",
}


def fill_in(settings: Any) -> None:
    """Gives Django's settings those of the ledger that they lack."""
    for name, value in JOBS.items():
        if not hasattr(settings, name):
            setattr(settings, name, value)


def celery() -> dict[str, Any]:
    """Celery's settings, by their names in lower case. `jobs.checks` refuses others where they must be these."""
    return {
        "broker_transport_options": {
            **BROKER_TRANSPORT_OPTIONS,
            # While Redis hangs, the worker's main thread waits so long, once.
            "socket_timeout": 1.5,
            "socket_connect_timeout": 1.5,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "result_backend": "jobs.backend:LedgerBackend",
        "result_expires": None,
        "task_queues": [Queue(name) for name in QUEUES],
        "task_default_queue": "default",
        "task_default_priority": 5,
        "task_create_missing_queues": False,
        "task_acks_late": True,
        "worker_prefetch_multiplier": 1,
        "worker_consumer": "jobs.worker.consumer:LedgerConsumer",
        # Celery's rate limit is one worker's own, and holds its slots. The ledger takes `rate_limit` for all workers
        # together.
        "worker_disable_rate_limits": True,
        # The ledger decides what becomes of a job whose process died; the message is never put back.
        "task_reject_on_worker_lost": False,
        "task_retry_on_worker_lost": False,
        # Without it a retry or failure of a task with ignore_result=True would never reach the ledger.
        "task_store_errors_even_if_ignored": True,
        # Keeps a slot's database connection over tasks instead of reconnecting twice around each one.
        "CELERY_DB_REUSE_MAX": 1000,
        "beat_scheduler": "jobs.scheduler:LedgerScheduler",
    }
