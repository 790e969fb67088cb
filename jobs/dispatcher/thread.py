"""The dispatcher's threads in a worker: what each looks at for itself and, if it leads, what may not wait; and beside
it, what may. Neither waits for the other."""

import logging
import time
from collections.abc import Callable, Iterable
from functools import wraps

from django.conf import settings
from django.db import connections

from jobs import settle
from jobs.dispatcher import flows, leader, neighbours, retention, statistics
from jobs.dispatcher.counting import Walk
from jobs.dispatcher.record import PROMPT_DUTIES, Record
from jobs.dispatcher.rescue import Rescuer
from jobs.patience import DATABASE_AWAY, what_happened
from jobs.worker.audit import Audit
from jobs.worker.thread import DutyThread

logger = logging.getLogger(__name__)

# False: it was not time yet.
Duty = Callable[[], object]

_NEIGHBOURS_SECONDS = 1.0
_RESCUE_SECONDS = 1.0
# The pause after a duty is at least so many times its length.
_SHARE = 20.0


class _Rounds(DutyThread):
    """Duties one after the other, over one connection. What becomes of those of the leader is noted."""

    def __init__(self, name: str, record: Record) -> None:
        super().__init__(name, settings.JOBS_DISPATCH_SECONDS)
        self.record = record

    def _lead(self, duties: Iterable[Duty]) -> bool | None:
        """A round of the leader's duties; whether at least one succeeded, None where none was due."""
        succeeded, failed = self._each(duties)
        for duty in succeeded:
            self.record.succeeded(_name(duty), every_seconds=_seconds(duty))
        for duty, error in failed:
            self.record.failed(_name(duty), error, every_seconds=_seconds(duty))
        return bool(succeeded) if succeeded or failed else None

    def _each(self, duties: Iterable[Duty]) -> tuple[list[Duty], list[tuple[Duty, Exception]]]:
        """Does each of them that is due, whatever becomes of the others; returns those that succeeded and those that
        failed. Raises only where PostgreSQL is away, which ends all."""
        succeeded: list[Duty] = []
        failed: list[tuple[Duty, Exception]] = []
        for duty in duties:
            try:
                if duty() is not False:
                    succeeded.append(duty)
            except DATABASE_AWAY as error:
                self._connect_anew()
                failed.append((duty, error))
                logger.warning("%s: %s broke off: %s.", self.name, _name(duty), what_happened(error))
            except Exception as error:  # whatever it was, the duties after it must not go without
                self._connect_anew()
                failed.append((duty, error))
                if self.told.is_new(error, _name(duty)):
                    logger.exception("%s: unexpected error in %s.", self.name, _name(duty))
        return succeeded, failed

    def _connect_anew(self) -> None:
        connections.close_all()
        connections[settle.ledger()].ensure_connection()


class DispatcherThread(_Rounds):
    """What each worker looks at for itself and, if it leads, what may not wait: jobs of dead workers, and flows that
    have ended."""

    def __init__(self) -> None:
        self.rescuer = Rescuer()
        self._audit = Audit()
        self.own: list[Duty] = [seldom(neighbours.run_once, seconds=_NEIGHBOURS_SECONDS), self._audit.run_once]
        self.leading: list[Duty] = [
            seldom(self.rescuer.run_once, seconds=_RESCUE_SECONDS),
            seldom(flows.Ends().run_once, seconds=flows.SECONDS),
        ]
        self.leads = False
        self.slow = SlowThread(leads=lambda: self.leads, record=Record())
        super().__init__("jobs-dispatcher", Record(map(_name, [*self.leading, *self.slow.duties]), PROMPT_DUTIES))
        self.slow.record = self.record
        self._hold_at = 0.0
        # Whether the last round in which something was tried did something: only then, the dispatcher ticks.
        self._works = False

    def run_once(self) -> None:
        """One round."""
        self.rescuer.look()
        try:
            self._round()
        finally:
            self.rescuer.rest()

    def _round(self) -> None:
        self._each(self.own)
        if time.monotonic() >= self._hold_at:
            self.leads = leader.hold(ticks=self._works)
            self._hold_at = time.monotonic() + leader.hold_seconds()
        if self.leads:
            works = self._lead(self.leading)
            self._works = self._works if works is None else works
            self.record.write()

    def recovered(self) -> None:
        """The database is back: the living get the time to renew their leases, and their runs to write their ends."""
        self.rescuer.wait()
        self._audit.wait()


class SlowThread(_Rounds):
    """What the leader does in its own time, and nobody waits for: the progress of flows, statistics, retention, counts.

    It has a connection only while it leads.
    """

    def __init__(self, *, leads: Callable[[], bool], record: Record) -> None:
        super().__init__("jobs-slow", record)
        self._leads = leads
        self._progress = flows.Progress()
        self.counts = Walk()
        self.duties: list[Duty] = [
            seldom(statistics.Fold(self._progress.members_ended).run_once, seconds=statistics.EVENTS_SECONDS),
            seldom(self._progress.run_once, seconds=flows.PROGRESS_SECONDS),
            seldom(statistics.Arrivals().run_once, seconds=statistics.ARRIVALS_SECONDS),
            seldom(statistics.fold_days, seconds=statistics.DAYS_SECONDS),
            seldom(retention.run_once, seconds=retention.SECONDS),
            self.counts.run_once,
            seldom(retention.remove_idle_limits, seconds=retention.LIMITS_SECONDS),
        ]

    def run_once(self) -> None:
        """One round."""
        if self._leads():
            self._lead(self.duties)
        else:
            self._progress.forget()
            connections.close_all()


def seldom(run_once: Callable[[], object], *, seconds: float) -> Duty:
    """A duty that is done every so many seconds, and at the very next look while it says that more is left."""
    not_before = 0.0

    @wraps(run_once)
    def look() -> bool:
        nonlocal not_before
        now = time.monotonic()
        if now < not_before:
            return False
        # Set first: a duty that fails has to wait as well.
        not_before = now + seconds
        is_more_left = run_once()
        ended = time.monotonic()
        # One that takes its time takes no more than a small share of it.
        not_before = now if is_more_left else max(not_before, ended + _SHARE * (ended - now))
        return True

    look.every_seconds = seconds  # type: ignore[attr-defined]  # for whoever judges whether it comes late
    return look


def _name(duty: Duty) -> str:
    """As in "retention" and "flows.report_progress"."""
    return f"{duty.__module__.rpartition('.')[2]}.{duty.__qualname__}".removesuffix(".run_once")


def _seconds(duty: Duty) -> float:
    return getattr(duty, "every_seconds", settings.JOBS_DISPATCH_SECONDS)
