"""The dispatcher's thread in a worker: what each worker looks at for itself, and, if it leads, every duty in turn."""

import logging
import time
from collections.abc import Callable, Iterable
from functools import wraps

from django.conf import settings
from django.db import connections

from jobs import live_counts, settle
from jobs.dispatcher import flows, leader, neighbours, retention, statistics
from jobs.dispatcher.rescue import Rescuer
from jobs.patience import DATABASE_AWAY
from jobs.worker.audit import Audit
from jobs.worker.thread import DutyThread

logger = logging.getLogger(__name__)

Duty = Callable[[], None]

_NEIGHBOURS_SECONDS = 1.0


class DispatcherThread(DutyThread):
    """Every duty once, every half second or more seldom, one after the other: all of them share one connection."""

    def __init__(self) -> None:
        super().__init__("jobs-dispatcher", settings.JOBS_DISPATCH_SECONDS)
        self.rescuer = Rescuer()
        self.own: list[Duty] = [seldom(neighbours.run_once, seconds=_NEIGHBOURS_SECONDS), Audit().run_once]
        self.leading: list[Duty] = [
            self.rescuer.run_once,
            flows.run_once,
            seldom(flows.report_progress, seconds=flows.PROGRESS_SECONDS),
            seldom(statistics.Fold().run_once, seconds=statistics.EVENTS_SECONDS),
            seldom(statistics.fold_days, seconds=statistics.DAYS_SECONDS),
            seldom(retention.run_once, seconds=retention.SECONDS),
            live_counts.Walk().run_once,
            seldom(retention.remove_idle_limits, seconds=retention.LIMITS_SECONDS),
        ]
        self.leads = False
        self._hold_at = 0.0

    def run_once(self) -> None:
        """One round."""
        self._each(self.own)
        if time.monotonic() >= self._hold_at:
            self.leads = leader.hold()
            self._hold_at = time.monotonic() + leader.hold_seconds()
        self.rescuer.look()
        if self.leads:
            self._each(self.leading)

    def recovered(self) -> None:
        """The database is back: the living get the time to renew their leases."""
        self.rescuer.wait()

    def _each(self, duties: Iterable[Duty]) -> None:
        """Does each of them, whatever becomes of the others. Raises only where PostgreSQL is away, which ends all."""
        for duty in duties:
            try:
                duty()
            except DATABASE_AWAY as error:
                self._connect_anew()
                logger.warning("%s: %s broke off (%s).", self.name, _name(duty), str(error).strip())
            except Exception:  # whatever it was, the duties after it must not go without
                self._connect_anew()
                logger.exception("%s: unexpected error in %s.", self.name, _name(duty))

    def _connect_anew(self) -> None:
        connections.close_all()
        connections[settle.ledger()].ensure_connection()


def seldom(run_once: Callable[[], object], *, seconds: float) -> Duty:
    """A duty that is done every so many seconds, and at the very next look while it says that more is left."""
    not_before = 0.0

    @wraps(run_once)
    def look() -> None:
        nonlocal not_before
        now = time.monotonic()
        if now >= not_before:
            # Set first: a duty that fails has to wait as well.
            not_before = now + seconds
            if run_once():
                not_before = now

    return look


def _name(duty: Duty) -> str:
    return f"{duty.__module__}.{duty.__qualname__}"
