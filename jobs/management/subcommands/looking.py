"""`manage.py jobs list` and `manage.py jobs show ID`."""

import json
from argparse import ArgumentTypeError
from datetime import datetime
from logging import getLevelName
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone
from kombu.utils import json as kombu_json

from jobs import services
from jobs.management.subcommands import DONE, NOT_FOUND, Output, filters, job_id
from jobs.management.tables import length
from jobs.models import AuditEntry, Job
from jobs.redaction import redact

_LOG_LINES = 50
_MOST_LISTED = 1_000_000
_WIDE = ("args", "kwargs", "headers", "follow_ups", "result", "exception", "traceback", "successor", "custom_meta")


class List:
    """Lists jobs."""

    name = "list"
    help = "Lists jobs, the newest first."

    def add_arguments(self, parser: CommandParser) -> None:
        filters.add_arguments(parser)
        parser.add_argument(
            "--limit", type=_count, default=50, metavar="N", help="at most so many (default: %(default)s)"
        )

    def run(self, options: dict[str, Any], output: Output) -> int:
        wanted = filters.given(options)
        found = wanted.matching().order_by("-created_at", "-pk").defer(*_WIDE)
        jobs = list(found[: options["limit"]])
        now = timezone.now()
        rows = [
            (
                job.pk,
                job.state,
                job.queue,
                job.priority,
                f"{job.attempt}/{job.max_attempts or '∞'}",
                length(now - job.created_at),
                job.task,
                _remark(job),
            )
            for job in jobs
        ]
        head = ("ID", "STATE", "QUEUE", "PRIO", "ATTEMPT", "AGE", "TASK", "")
        output.table(head, rows, [facts(job) for job in jobs], empty=f"No job matches: {wanted.in_words()}.")
        return DONE


class Show:
    """Shows a job."""

    name = "show"
    help = "Shows all that is known of a job, secrets hidden: payload, result, runs, log, why it is not running."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("job_id", type=job_id, metavar="ID")

    def run(self, options: dict[str, Any], output: Output) -> int:
        job = Job.objects.filter(pk=options["job_id"]).first()
        if job is None:
            text = f"There is no job {options['job_id']}: it never was, or retention has removed it."
            output.tell(text, job=str(options["job_id"]), error=text)
            return NOT_FOUND
        whole = {**facts(job), **_details(job)}
        output.tell(_in_words(whole), **whole)
        return DONE


def _count(text: str) -> int:
    try:
        found = int(text)
    except ValueError:
        found = 0
    if not 1 <= found <= _MOST_LISTED:
        raise ArgumentTypeError(f"{text!r:.100}: expected a number from 1 to {_MOST_LISTED}")
    return found


def facts(job: Job) -> dict[str, Any]:
    """What a list says of a job, for programs."""
    return {
        "job": str(job.pk),
        "task": job.task,
        "queue": job.queue,
        "state": job.state,
        "priority": job.priority,
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "created_at": job.created_at,
        "run_at": job.run_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "progress_percent": job.progress_percent,
        "progress_message": job.progress_message,
        "error": job.error,
    }


def _details(job: Job) -> dict[str, Any]:
    lines = list(job.log_lines.order_by("-id")[:_LOG_LINES])[::-1]
    return {
        "why": services.why(job.pk),
        "args": redact(job.args),
        "kwargs": redact(job.kwargs),
        "result": redact(job.result),
        "dedup_key": job.dedup_key,
        "expires_at": job.expires_at,
        "correlation_id": job.correlation_id,
        "parent": job.parent_id and str(job.parent_id),
        "root": job.root_id and str(job.root_id),
        "owner": job.owner_id,
        "worker": job.worker_id and str(job.worker_id),
        "stalled_count": job.stalled_count,
        "time_limit_seconds": job.time_limit_seconds,
        "attempts": list(job.attempts.values("number", "outcome", "started_at", "ended_at", "error")),
        "operators": list(AuditEntry.objects.filter(thing_id=str(job.pk)).values("at", "actor_name", "what")),
        "log": [{"at": line.at, "level": getLevelName(line.level), "message": line.message} for line in lines],
        "traceback": job.traceback,
    }


def _remark(job: Job) -> str:
    if job.error:
        return " ".join(job.error.split())
    if job.progress_percent is not None and job.progress_percent < 100:
        return f"{job.progress_percent} % {job.progress_message}".rstrip()
    return ""


def _in_words(whole: dict[str, Any]) -> str:
    width = max(map(len, whole))
    lines = []
    for name, value in whole.items():
        if value in (None, "", [], {}):
            continue
        label = name.replace("_", " ").ljust(width)
        if isinstance(value, list) and name in ("attempts", "operators", "log"):
            lines += [label.rstrip(), *(f"  {_row(row)}" for row in value)]
        elif isinstance(value, str) and "\n" in value:
            lines += [label.rstrip(), *(f"  {line}" for line in value.splitlines())]
        else:
            lines.append(f"{label}  {_plain(value)}")
    return "\n".join(lines)


def _row(row: dict[str, Any]) -> str:
    return "  ".join(_plain(value) for value in row.values() if value not in (None, ""))


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S} UTC"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, cls=kombu_json.JSONEncoder)
