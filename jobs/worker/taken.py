"""Messages of other producers that this worker has taken are its own, also when it loses the broker."""

from typing import Any

from celery import bootsteps


class KeepTaken(bootsteps.StartStopStep):
    """Lets taken messages stay with the worker when their connection is lost.

    Kombu would put them back into Redis, which in an outage fails, and leaves a file with each of them behind.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)
    label = "Taken"

    def start(self, consumer: Any) -> None:
        """Called again after each reconnect, when the tasks of the worker are known."""
        # The ledger's modules need Django set up, which is so only from here on.
        from jobs.worker.claimer import own_claimer

        consumer.task_consumer.channel.qos.restore_at_shutdown = False
        own_claimer().rouse()
