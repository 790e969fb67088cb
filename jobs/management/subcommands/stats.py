"""`manage.py jobs stats`."""

from argparse import ArgumentTypeError
from datetime import timedelta
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from jobs import selectors, statistics
from jobs.management.subcommands import DONE, Output
from jobs.management.tables import length
from jobs.statistics import Counts

_MOST_HOURS = 24 * 366
_HEAD = (
    "WAITING",
    "ACTIVE",
    "DELAYED",
    "COMPLETED",
    "FAILED",
    "RETRIED",
    "STALLED",
    "A MINUTE",
    "WAIT",
    "RUN",
    "RUN 95 %",
)


class Stats:
    """Counts and times, from the statistics."""

    name = "stats"
    help = "What waits and runs now, and what ended lately, by queue or by task; medians of waits and runs."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--by", choices=["queue", "task"], default="queue")
        parser.add_argument(
            "--hours", type=_hours, default=1, metavar="N", help="how far back (default: %(default)s; to the minute)"
        )

    def run(self, options: dict[str, Any], output: Output) -> int:
        by = options["by"]
        span = timedelta(hours=options["hours"])
        counts = {key[0]: found for key, found in statistics.counts(start_at=timezone.now() - span, by=[by]).items()}
        statuses = selectors.queue_statuses() if by == "queue" else {}
        names = [*statuses, *sorted(counts.keys() - statuses.keys())]
        rows, facts = [], []
        for name in names:
            found = counts.get(name, Counts())
            status = statuses.get(name)
            live = {state: getattr(status, state) if status else None for state in ("waiting", "active", "delayed")}
            if status and status.is_paused:
                live["waiting"] = status.paused
            ends = {kind: getattr(found, kind) for kind in ("completed", "failed", "retried", "stalled", "cancelled")}
            times = {
                "per_minute": found.finished / (span.total_seconds() / 60),
                "wait_seconds_median": found.waits.percentile_seconds(50),
                "run_seconds_median": found.runs.percentile_seconds(50),
                "run_seconds_95": found.runs.percentile_seconds(95),
            }
            facts.append({by: name, "is_paused": bool(status and status.is_paused), **live, **ends, **times})
            shown: list[Any] = ["–"] * len(live)
            if status is not None:
                waiting = f"{status.words('paused')} paused" if status.is_paused else status.words("waiting")
                shown = [waiting, status.words("active"), status.words("delayed")]
            shown += [ends[kind] for kind in ("completed", "failed", "retried", "stalled")]
            lengths = [length(seconds) for seconds in list(times.values())[1:]]
            rows.append((name, *shown, f"{times['per_minute']:.1f}", *lengths))
        output.table((by.upper(), *_HEAD), rows, facts, empty="Nothing ended in that time.")
        return DONE


def _hours(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0
    # To the minute, so less than one is none; not a number is none either.
    if not 1 / 60 <= found <= _MOST_HOURS:
        raise ArgumentTypeError(f"{text!r}: expected hours, from 0.02 to {_MOST_HOURS}, as in 0.5 or 24")
    return found
