"""The scheduler of `celery -A config beat`: django-celery-beat's tables, each tick a row written with its job (G09)."""

import logging
import random
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.db import DatabaseError, InterfaceError, InternalError, connections
from django.db.models.functions import Now
from django_celery_beat.models import PeriodicTask
from django_celery_beat.schedulers import DatabaseScheduler

from jobs import settle
from jobs.cron import rows, ticks
from jobs.cron.plans import Broken, Plan, Plans, in_words
from jobs.models import CatchUp, Duty
from jobs.patience import DATABASE_AWAY, what_happened

logger = logging.getLogger(__name__)

NAME = "beat"
# Every edit is seen, and every tick decided, within one look.
_LONGEST_PAUSE_SECONDS = 2.0
_LONGEST_LOOK_SECONDS = 1.0
_SHORTEST_PAUSE_SECONDS = 0.01
# Until another look at a schedule that somebody has locked.
_LOCKED_PAUSE_SECONDS = 0.5
_OUTAGE_PAUSE_SECONDS = 1.0
# PostgreSQL tells a beat that hung of the end of its transaction by an InternalError.
_OUTAGES = (*DATABASE_AWAY, InternalError)


class LedgerScheduler(DatabaseScheduler):
    """Looks at all schedules, and decides the ticks that have come. It keeps nothing but what it has read.

    Of django-celery-beat's scheduler, which keeps time in memory, the tables remain, and the way in which entries of
    `beat_schedule` come into them. Any number of beats do the same at once: see `jobs.cron.ticks.decide`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._is_set_up = False
        super().__init__(*args, **kwargs)
        self.max_interval: float = min(self.max_interval, _LONGEST_PAUSE_SECONDS)
        self._plans = Plans(self.app)
        # Schedules that somebody had locked at the last try.
        self._locked: set[int] = set()

    def setup_schedule(self) -> None:
        """Does nothing yet: the first look does it, and again until PostgreSQL is there."""

    @property
    def schedule(self) -> dict[str, Any]:
        """Empty: the schedules are in the tables alone."""
        return {}

    def sync(self) -> None:
        """Does nothing: all is written."""

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """One look at all schedules. Returns the seconds until the next."""
        try:
            pause = self._look()
            self._note_look()
            if not self._is_set_up:
                self._set_up()
                pause = _SHORTEST_PAUSE_SECONDS
        except (DatabaseError, InterfaceError) as error:
            # An error that came out of here would end beat.
            logger.warning("%s; looking again.", what_happened(error))
            connections.close_all()
            return _OUTAGE_PAUSE_SECONDS
        return pause

    def _note_look(self) -> None:
        """For health and readiness. Without a transaction: a beat that hung in it would have all others wait."""
        if not Duty.objects.filter(name=NAME).update(ticked_at=Now()):
            Duty.objects.bulk_create([Duty(name=NAME, ticked_at=Now())], ignore_conflicts=True)

    def _set_up(self) -> None:
        """Writes the entries of `beat_schedule` into the tables as django-celery-beat does, one beat at a time."""
        with settle.atomic():
            # Two at once would make the same crontab or interval twice.
            Duty.objects.select_for_update().filter(name=NAME).values_list("pk", ticks.LET_GO_IN_TIME).get()
            self.install_default_entries({})
            self.update_from_dict(self.app.conf.beat_schedule)
        self._is_set_up = True

    def update_from_dict(self, mapping: Mapping[str, Any]) -> None:
        """Writes entries of code into the tables. One that cannot be written is logged, and the others are."""
        for name, entry in mapping.items():
            try:
                with settle.atomic():
                    self.Entry.from_entry(name, app=self.app, **entry)
                    _write_key(name, entry)
            except DATABASE_AWAY:
                raise
            except Exception:  # whatever is wrong with it, the others must not go without
                logger.exception("beat_schedule: %r cannot be a periodic task.", name)

    def _look(self) -> float:
        """Decides all that is due; returns the seconds until the next tick, or until it is time to read anew."""
        begun = time.monotonic()
        pause = self.max_interval
        for plan in sorted(self._plans.of(rows.read()), key=self._urgency):
            pause = min(pause, self._treat(plan))
            if time.monotonic() - begun > _LONGEST_LOOK_SECONDS:
                # What is left is still due at the next look, which comes at once and sees what was edited meanwhile.
                return _SHORTEST_PAUSE_SECONDS
        return max(_SHORTEST_PAUSE_SECONDS, pause - (time.monotonic() - begun))

    def _treat(self, plan: Plan | Broken) -> float:
        """Decides what is due of one schedule, notes whether it is broken, and returns the seconds until it is due."""
        error, pause = "", self.max_interval
        if isinstance(plan, Broken):
            error = plan.error
        elif plan.is_due:
            try:
                pause = self._decide(plan)
            except _OUTAGES:
                raise
            except Exception as raised:  # whatever is wrong with it, the others must not go without
                logger.exception("Schedule %r: its tick cannot be decided.", plan.row.name)
                error = in_words(raised)
        elif plan.next_at is not None:
            pause = (plan.next_at - plan.row.now).total_seconds()
        if error != plan.row.reported_error:
            ticks.report(plan.row, error)
        return pause

    def _decide(self, plan: Plan) -> float:
        """Decides what is due, if nobody has it locked; returns the seconds until another look."""
        self._locked.discard(plan.row.pk)
        if ticks.decide(plan):
            return 0.0
        self._locked.add(plan.row.pk)
        return _LOCKED_PAUSE_SECONDS

    def _urgency(self, plan: Plan | Broken) -> tuple[bool, bool, datetime, float]:
        """Who comes first in a look: the longest due, and last those that may be locked still. Of those due at one
        moment, several beats take different ones."""
        next_at = plan.next_at if isinstance(plan, Plan) else None
        chance = random.random()  # noqa: S311  # no secret
        return isinstance(plan, Broken), plan.row.pk in self._locked, next_at or plan.row.now, chance


def _write_key(name: str, entry: Mapping[str, Any]) -> None:
    """Of the options of an entry, the one that django-celery-beat has no column for."""
    key = (entry.get("options") or {}).get("dedup_key")
    if key:
        schedule = PeriodicTask.objects.get(name=name)
        CatchUp.objects.update_or_create(periodic_task=schedule, defaults={"dedup_key": key})
