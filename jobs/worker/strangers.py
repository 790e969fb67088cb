"""Messages of other producers, such as `celery call` of another project: each becomes a row of the ledger first."""

import logging
from typing import Any, NamedTuple

from celery.app.task import Task

from jobs import dead_letters
from jobs.doorbell import REDIS_AWAY
from jobs.ids import id_of_message
from jobs.models import Job
from jobs.patience import DATABASE_AWAY

logger = logging.getLogger(__name__)


class Stranger(NamedTuple):
    """A message for a task of the ledger that no job is behind, with kombu's ways to acknowledge and to reject it."""

    task: Task
    message: Any
    body: Any
    ack: Any
    reject: Any

    def become_a_job(self) -> None:
        """Writes the job's row, unless its id is one already, and acknowledges the message.

        Raises where PostgreSQL is away: then it is to be called again. What is wrong with a message is in the log.
        """
        told = (logger, ())
        try:
            self._enqueue()
        except DATABASE_AWAY:
            raise
        except Exception as error:  # whatever is wrong with it, nobody else waits for it
            logger.exception("A message of another producer is no job of %s.", self.task.name)
            dead_letters.keep_read(self.message, f"{type(error).__name__}: {error}")
            self.reject(*told)
        else:
            self.ack(*told)

    def go_back(self) -> None:
        """Puts the message back into Redis. In the main thread: the connection is its own."""
        self.message.reject_log_error(logger, REDIS_AWAY, requeue=True)

    def _enqueue(self) -> None:
        headers, body = self.message.headers or {}, self.body or {}
        job_id = id_of_message(headers.get("id") or body.get("id"))
        if Job.objects.filter(pk=job_id).exists():
            return
        args, kwargs = (body.get("args"), body.get("kwargs")) if body else self.message.decode()[:2]
        given = {name: headers.get(name) or body.get(name) for name in ("eta", "expires")}
        hard_seconds, soft_seconds = headers.get("timelimit") or body.get("timelimit") or (None, None)
        logger.info("id=%s task=%s came from another producer; it is in the ledger now", job_id, self.task.name)
        self.task.app.send_task(
            self.task.name,
            args or (),
            kwargs or {},
            task_id=str(job_id),
            priority=(self.message.properties or {}).get("priority"),
            time_limit=hard_seconds,
            soft_time_limit=soft_seconds,
            **given,
        )
