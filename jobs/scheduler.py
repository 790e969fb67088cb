"""The scheduler of `celery -A config beat`: crontabs and intervals from the database, each tick a job of the ledger."""

import logging
from typing import Any

from celery.beat import SchedulingError
from django.db import DatabaseError, InterfaceError, connections
from django.db.models.functions import Now
from django.utils import timezone
from django_celery_beat.schedulers import DatabaseScheduler, ScheduleEntry

from jobs.ids import derived_id, new_id
from jobs.models import Duty
from jobs.patience import DATABASE_AWAY, patiently

logger = logging.getLogger(__name__)

NAME = "beat"
_LONGEST_PAUSE_SECONDS = 5
_OUTAGE_PAUSE_SECONDS = 1.0
_TICK_PATIENCE_SECONDS = 3600


class LedgerScheduler(DatabaseScheduler):
    """django-celery-beat's scheduler, whose jobs carry the tick in their id: two beats at one tick give one job."""

    sync_every_tasks = 1
    # A tick writes a row. Celery's own producer would keep the ticks waiting for Redis.
    producer = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.max_interval = _LONGEST_PAUSE_SECONDS

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """One look at the schedules; notes that it was taken."""
        try:
            pause: float = super().tick(*args, **kwargs)
            Duty.objects.update_or_create(name=NAME, defaults={"ticked_at": Now()})
        except (DatabaseError, InterfaceError) as error:
            # An error that came out of here would end beat.
            logger.warning("PostgreSQL does not answer (%s); looking again.", str(error).strip())
            connections.close_all()
            return _OUTAGE_PAUSE_SECONDS
        return pause

    def apply_async(self, entry: ScheduleEntry, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """Enqueues the job of a tick under an id made of the schedule and the minute.

        Celery has the schedule move on before its job is written: so this waits for the database as long as it takes.
        """
        minute = timezone.now().replace(second=0, microsecond=0)
        is_crontab = not hasattr(entry.schedule, "run_every")
        entry.options["task_id"] = str(derived_id("tick", entry.name, minute.isoformat()) if is_crontab else new_id())

        def write(repeated: bool) -> Any:
            try:
                return super(LedgerScheduler, self).apply_async(
                    entry, producer=producer, advance=advance and not repeated, **kwargs
                )
            except SchedulingError as error:
                if isinstance(error.__context__, DATABASE_AWAY):
                    raise error.__context__ from None
                raise

        return patiently(write, seconds=_TICK_PATIENCE_SECONDS)
