"""The options that say which jobs are meant: those of `jobs.job_filter.JobFilter`."""

from argparse import ArgumentTypeError
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime

from jobs.job_filter import JobFilter
from jobs.states import State


def add_arguments(parser: CommandParser) -> None:
    """Each narrows it."""
    group = parser.add_argument_group("all jobs that match (all that is given must hold)")
    group.add_argument("--state", choices=[state.value for state in State])
    group.add_argument("--queue", action="append", dest="queues", metavar="QUEUE", help="may be given several times")
    group.add_argument("--task", metavar="NAME", help="as in notifications.tasks.send_welcome")
    group.add_argument("--error", metavar="TEXT", help="words that the error holds, whatever their case")
    for name, meaning in (
        ("created-from", "enqueued then or later"),
        ("created-until", "enqueued before"),
        ("ended-from", "ended then or later"),
        ("ended-until", "ended before"),
    ):
        group.add_argument(
            f"--{name}", type=_moment, metavar="TIME", help=f"{meaning}; ISO 8601, UTC where no zone is given"
        )


def given(options: dict[str, Any]) -> JobFilter:
    """The filter that the options make."""
    queues = options["queues"]
    return JobFilter(
        state=options["state"],
        queues=None if queues is None else tuple(queues),
        task=options["task"],
        error=options["error"] or None,
        created_from=options["created_from"],
        created_until=options["created_until"],
        ended_from=options["ended_from"],
        ended_until=options["ended_until"],
    )


def _moment(text: str) -> datetime:
    try:
        found = parse_datetime(text)
        if found is None and (date := parse_date(text)):
            found = datetime(date.year, date.month, date.day)
        if found is not None:
            return found.astimezone(UTC) if timezone.is_aware(found) else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        # A day that there is not; or what is before the year 1, or after 9999, in UTC.
        pass
    raise ArgumentTypeError(f"{text!r} is no time, as 2026-03-01T08:00 or 2026-03-01 are")
