"""The dispatcher's thread in a worker: leads if it may, and then does each duty in turn."""

from celery import Celery
from django.conf import settings

from jobs.dispatcher import due, leader, neighbours
from jobs.dispatcher.rescue import Rescuer
from jobs.dispatcher.topup import TopUp
from jobs.worker.thread import DutyThread


class DispatcherThread(DutyThread):
    """Every duty once, every half second, while this worker leads."""

    def __init__(self, app: Celery) -> None:
        super().__init__("jobs-dispatcher", settings.JOBS_DISPATCH_SECONDS)
        self.rescuer = Rescuer()
        self.top_up = TopUp(app)

    def run_once(self) -> None:
        """One round: what each worker looks at for itself, and, if this one leads, every duty."""
        neighbours.run_once()
        leads = leader.hold()
        self.rescuer.look()
        if not leads:
            return
        self.rescuer.run_once()
        self.top_up.run_once(due.run_once())

    def recovered(self) -> None:
        """The database is back: the living get the time to renew their leases."""
        self.rescuer.wait()
