"""`manage.py jobs tail`: what becomes of jobs, or of one job, as it happens."""

import math
import time
from datetime import datetime, timedelta
from logging import getLevelName
from typing import Any
from uuid import UUID

from django.core.management.base import CommandParser
from django.db.models import Q, QuerySet

from jobs import claims
from jobs.management.subcommands import DONE, NOT_FOUND, REFUSED, Output, filters, job_id
from jobs.management.tables import length
from jobs.models import Job, LogLine
from jobs.states import END_STATES, State

_PAUSE_SECONDS = 0.5
# A row may be committed a moment after the time that stands in it.
_OVERLAP = timedelta(seconds=5)


class Tail:
    """Follows jobs."""

    name = "tail"
    help = "Tells what becomes of jobs as it happens; of one job, also its log and progress, until it has ended."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("job_id", nargs="?", type=job_id, metavar="ID", help="one job; otherwise all that match")
        filters.add_arguments(parser)
        parser.add_argument("--for", type=_seconds, dest="seconds", metavar="SECONDS", help="end after so long")

    def run(self, options: dict[str, Any], output: Output) -> int:
        ends_at = None if options["seconds"] is None else time.monotonic() + options["seconds"]
        follow = _One(options["job_id"]) if options["job_id"] else _Many(filters.given(options).matching())
        try:
            while (status := follow.look(output)) is None:
                if ends_at is not None and time.monotonic() >= ends_at:
                    return DONE
                time.sleep(_PAUSE_SECONDS)
        except KeyboardInterrupt:
            return DONE
        return status


def _seconds(text: str) -> float:
    found = float(text)
    if math.isnan(found):
        raise ValueError(text)
    return found


class _Many:
    """Enqueued, started, ended: each once for each time that it happens."""

    def __init__(self, wanted: QuerySet[Job]) -> None:
        self._wanted = wanted
        self._since = claims.now()
        self._begin = self._since
        self._told: dict[tuple[UUID, str, datetime], None] = {}

    def look(self, output: Output) -> int | None:
        since, self._since = self._since - _OVERLAP, claims.now()
        since = max(since, self._begin)
        times = ("created_at", "started_at", "finished_at")
        changed = self._wanted.filter(
            Q(created_at__gt=since)
            | Q(started_at__gt=since, state="active")
            | Q(finished_at__gt=since, state__in=[state.value for state in END_STATES])
        )
        happened = [
            (moment, name, job)
            for job in changed.only("task", "queue", "state", "attempt", "error", *times)
            for name in times
            if (moment := getattr(job, name)) is not None and moment > since
        ]
        for moment, name, job in sorted(happened, key=lambda one: one[0]):
            if (job.pk, name, moment) not in self._told:
                self._told[job.pk, name, moment] = None
                self._tell(moment, name, job, output)
        for known in [known for known in self._told if known[2] < since - _OVERLAP]:
            del self._told[known]
        return None

    def _tell(self, moment: datetime, name: str, job: Job, output: Output) -> None:
        what = {"created_at": "enqueued", "started_at": "started"}.get(name, job.state)
        details = ""
        if name == "finished_at" and job.started_at:
            details = f" after {length(moment - job.started_at)}"
        if name == "finished_at" and job.error:
            details += f": {' '.join(job.error.split())}"
        output.tell(
            f"{moment:%H:%M:%S} {what:<9} {job.queue:<9} {job.task} {job.pk}{details}",
            at=moment,
            what=what,
            job=str(job.pk),
            task=job.task,
            queue=job.queue,
            error=job.error if name == "finished_at" else "",
        )


class _One:
    """Its state, its progress and its log lines, until it has ended."""

    def __init__(self, wanted: UUID) -> None:
        self._wanted = wanted
        self._last_line = 0
        self._told: tuple[Any, ...] = ()
        self._ended = False

    def look(self, output: Output) -> int | None:
        job = Job.objects.filter(pk=self._wanted).first()
        if job is None:
            text = f"There is no job {self._wanted}: it never was, or retention has removed it."
            output.tell(text, job=str(self._wanted), error=text)
            return NOT_FOUND
        for line in LogLine.objects.filter(job_id=self._wanted, pk__gt=self._last_line):
            self._last_line = line.pk
            level = getLevelName(line.level)
            output.tell(f"{line.at:%H:%M:%S} {level} {line.message}", at=line.at, level=level, message=line.message)
        state = (job.state, job.attempt, job.progress_percent, job.progress_message, job.error)
        if state != self._told:
            self._told = state
            percent = (
                "" if job.progress_percent is None else f" {job.progress_percent} % {job.progress_message}".rstrip()
            )
            error = f": {job.error}" if job.error else ""
            output.tell(
                f"{claims.now():%H:%M:%S} {job.state}, attempt {job.attempt}{percent}{error}",
                job=str(job.pk),
                state=job.state,
                attempt=job.attempt,
                progress_percent=job.progress_percent,
                progress_message=job.progress_message,
                error=job.error,
            )
        if State(job.state) not in END_STATES:
            return None
        if not self._ended:
            # Its last log lines may come a moment after it.
            self._ended = True
            return None
        return DONE if job.state == State.COMPLETED else REFUSED
