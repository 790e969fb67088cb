"""How a job comes to Celery: claimed by this worker, or as a message of another producer, which becomes a job first."""

from typing import Any

from celery.worker.strategy import default

from jobs.worker import remote
from jobs.worker.claimer import own_claimer
from jobs.worker.requests import ClaimedMessage


def strategy(task: Any, app: Any, consumer: Any) -> Any:
    """Celery's way of taking a message for a task of the ledger, made anew at each connection to the broker."""
    run = default(task, app, consumer)

    def take(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> None:
        if isinstance(message, ClaimedMessage):
            if remote.may_start(message.headers["claimed"]):
                run(message, None, ack, reject, callbacks)
        else:
            own_claimer().adopt(task, message, body, ack, reject)

    return take
