"""Messages that this worker has taken are kept nowhere but in its memory: the ledger hints again at jobs that wait."""

from typing import Any

from celery import bootsteps


class KeepNoHints(bootsteps.StartStopStep):
    """Lets taken hints go with the connection that they came over.

    Kombu would put them back into Redis, which in an outage fails, and leaves a file with each of them behind.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)
    label = "Hints"

    def start(self, consumer: Any) -> None:
        """Called again after each reconnect."""
        consumer.task_consumer.channel.qos.restore_at_shutdown = False
