"""One look at everything that the ledger stands on: what is wrong, and what to do about it.

An examination is a function that yields findings. Those of the ledger are here; an app adds its own by `examination`,
and imports them in its `AppConfig.ready()`.
"""

import platform
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from importlib.metadata import version
from typing import Any

import redis
from celery import current_app
from django.conf import settings
from django.core.checks import ERROR, WARNING, run_checks
from django.db import DatabaseError, InterfaceError, connections
from django.db.models import F
from django.db.models.functions import Now

from jobs import dead_letters, health, selectors, settle
from jobs.doorbell import Doorbell, client_within
from jobs.models import QueueControl, Worker
from jobs.queues import QUEUES

PACKAGES = ("Django", "celery", "kombu", "redis", "psycopg", "django-celery-beat")
# Well beyond what a clock that is kept by NTP differs, and what a question to the database takes.
CLOCK_WARNING_SECONDS = 1.0
CLOCK_ERROR_SECONDS = 10.0
SHORT_LEASE_SECONDS = 5.0
START_PATIENCE_SECONDS = 30.0
_PATIENCE_SECONDS = 2.0
_SEE_SERVERS = "See what is said of the servers."
_SEE_SETTINGS = "See what is said of the settings."
# Web processes, beat, commands, and what PostgreSQL keeps for superusers.
_OTHER_CONNECTIONS = 20


class Level(StrEnum):
    """How bad it is."""

    FACT = "fact"
    GOOD = "good"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found and, where it is not good, the cure."""

    level: Level
    text: str
    cure: str = ""


Examination = Callable[[], Iterator[Finding]]
_examinations: dict[str, Examination] = {}


def examination(title: str) -> Callable[[Examination], Examination]:
    """Registers an examination under a heading."""

    def register(examine: Examination) -> Examination:
        _examinations[title] = examine
        return examine

    return register


def examine() -> Iterator[tuple[str, list[Finding]]]:
    """Every examination with its findings, in the order of registration. One that a server's absence breaks off says
    so, and the others go on."""
    for title, examine_one in _examinations.items():
        findings: list[Finding] = []
        try:
            findings.extend(examine_one())
        except (DatabaseError, InterfaceError, redis.RedisError, OSError) as error:
            if isinstance(error, DatabaseError | InterfaceError):
                connections[settle.ledger()].close()
            findings.append(Finding(Level.ERROR, f"Could not be looked at: {error}".strip(), _SEE_SERVERS))
        except (ValueError, TypeError, AttributeError) as error:
            # A setting that is nonsense, such as the address of a broker that is no Redis.
            findings.append(Finding(Level.ERROR, f"Could not be looked at: {error}", _SEE_SETTINGS))
        yield title, findings or [Finding(Level.GOOD, "Nothing to report.")]


@examination("Versions")
def versions() -> Iterator[Finding]:
    """What runs here."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    yield Finding(Level.FACT, f"Python {platform.python_version()}, {packages}, on {socket.gethostname()}.")
    mine = own_versions()
    for worker in selectors.living_workers():
        if worker.versions and worker.versions != mine:
            theirs = {name: number for name, number in worker.versions.items() if mine.get(name) != number}
            yield Finding(
                Level.WARNING,
                f"Worker {worker.node} runs other versions: {_listed(theirs)}; here: "
                f"{_listed({name: mine.get(name) for name in theirs})}.",
                "Deploy the same image or lock file everywhere, then restart that worker.",
            )


@examination("Servers")
def servers() -> Iterator[Finding]:
    """PostgreSQL and Redis: in reach, and set so that they keep what they were given."""
    with connections[settle.ledger()].cursor() as cursor:
        names = (
            *("server_version", "fsync", "full_page_writes", "synchronous_commit", "max_connections"),
            *("transaction_isolation", "transaction_read_only"),
        )
        cursor.execute("SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", [list(names)])
        found = dict(cursor.fetchall())
    yield Finding(Level.FACT, f"PostgreSQL {found['server_version']}.")
    for name in ("fsync", "full_page_writes", "synchronous_commit"):
        if found[name] == "off":
            yield Finding(
                Level.ERROR,
                f"PostgreSQL runs with {name} = off: a crash loses or corrupts what was committed.",
                f"Set {name} = on, unless this is a throw-away stack.",
            )
    if found["transaction_isolation"] != "read committed":
        yield Finding(
            Level.ERROR,
            f"Transactions are {found['transaction_isolation']}: claims and ends fail where two meet.",
            "Set default_transaction_isolation = 'read committed' for the database or the role.",
        )
    if found["transaction_read_only"] == "on":
        yield Finding(
            Level.ERROR,
            "PostgreSQL takes no writes: nothing can be enqueued, claimed or ended.",
            "Set default_transaction_read_only = off; or DATABASE_URL names a replica, and must name the primary.",
        )
    needed = sum(2 * worker.concurrency + 5 for worker in selectors.living_workers()) + _OTHER_CONNECTIONS
    if int(found["max_connections"]) < needed:
        yield Finding(
            Level.WARNING,
            f"PostgreSQL takes {found['max_connections']} connections; the workers that live may want {needed}.",
            "Raise max_connections, or put PgBouncer before it (docs/deployment.md).",
        )
    if missing := health.why_not_ready():
        yield Finding(Level.ERROR, missing, "Run: python manage.py migrate")
    yield from _redis()


def _redis() -> Iterator[Finding]:
    with client_within(_PATIENCE_SECONDS) as client:
        try:
            info: dict[str, Any] = client.info()
        except (redis.RedisError, OSError) as error:
            yield Finding(
                Level.ERROR,
                f"Redis does not answer: {error}.",
                "Start it, or correct REDIS_URL. Jobs wait in the database meanwhile; nothing is lost.",
            )
            return
    server = "Valkey" if "valkey_version" in info else "Redis"
    yield Finding(Level.FACT, f"{server} {info.get('valkey_version', info['redis_version'])}.")
    if info.get("cluster_enabled"):
        yield Finding(
            Level.ERROR,
            f"{server} runs as a cluster: the queues of a worker may lie on different nodes, and it would hear none.",
            "Use a single server, with a replica where it must not be away.",
        )
    if info.get("maxmemory_policy") not in (None, "noeviction"):
        yield Finding(
            Level.WARNING,
            f"{server} may evict keys (maxmemory-policy {info['maxmemory_policy']}): "
            "a ring that vanishes makes a job a second late.",
            "Set maxmemory-policy noeviction.",
        )
    if not info.get("aof_enabled"):
        yield Finding(
            Level.WARNING,
            f"{server} keeps no append-only file: its restart loses messages of other producers, "
            "and none of the ledger's jobs.",
            "Set appendonly yes. No job depends on it.",
        )


@examination("Clocks")
def clocks() -> Iterator[Finding]:
    """This process and every worker against the database, whose clock decides."""
    before = datetime.now(UTC)
    with connections[settle.ledger()].cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        theirs = cursor.fetchone()[0]
    after = datetime.now(UTC)
    yield from _clock("this process", before + (after - before) / 2 - theirs)
    for worker in selectors.living_workers():
        if worker.clock_at is not None and worker.renewed_at is not None:
            # Taken before it was sent: a little behind is what the way takes.
            yield from _clock(f"worker {worker.node}", worker.clock_at - worker.renewed_at)


def _clock(whose: str, ahead: timedelta) -> Iterator[Finding]:
    seconds = ahead.total_seconds()
    if abs(seconds) < CLOCK_WARNING_SECONDS:
        yield Finding(Level.GOOD, f"The clock of {whose} is that of the database.")
        return
    yield Finding(
        Level.ERROR if abs(seconds) >= CLOCK_ERROR_SECONDS else Level.WARNING,
        f"The clock of {whose} is {abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'} the database's.",
        "Set it by NTP (chrony, systemd-timesyncd). Leases hold all the same; moments given by eta= do not.",
    )


@examination("Workers and queues")
def workers_and_queues() -> Iterator[Finding]:
    """Who works, what nobody works on, and what waits though it need not."""
    workers = list(selectors.living_workers())
    statuses = selectors.queue_statuses()
    yield Finding(Level.FACT, f"{len(workers)} workers: {', '.join(worker.node for worker in workers) or 'none'}.")
    for status in statuses.values():
        states = ("waiting", "paused", "delayed")
        waiting = any(getattr(status, state) for state in states)
        if not status.is_declared:
            if waiting or status.active:
                yield Finding(
                    Level.ERROR,
                    f"Queue {status.name} is not declared, and has {_jobs(status.words(*states, 'active'))}.",
                    f"Declare it in jobs/queues.py, or cancel them: python manage.py jobs cancel --queue {status.name}",
                )
        elif not status.worker_nodes:
            yield Finding(
                Level.ERROR if waiting else Level.WARNING,
                f"No worker consumes queue {status.name}; waiting or delayed there: {_jobs(status.words(*states))}.",
                f"Start one: celery -A config worker -Q {status.name}",
            )
    for control in QueueControl.objects.filter(paused_at__isnull=False).order_by("name"):
        count = statuses[control.name].words("paused") if control.name in statuses else "0"
        yield Finding(
            Level.WARNING,
            f"Queue {control.name} is paused since {control.paused_at:%Y-%m-%d %H:%M} UTC. Waiting: {_jobs(count)}.",
            f"When its reason is gone: python manage.py jobs resume {control.name}",
        )
    for queue, tasks in sorted(selectors.unknown_tasks().items()):
        for task in sorted(tasks):
            yield Finding(
                Level.ERROR,
                f"No worker of queue {queue} knows the task {task}, of which jobs wait there.",
                "Deploy the code that has it and restart the workers, or cancel them: python manage.py jobs cancel "
                f"--task {task}",
            )
    yield from _standing_still(workers)
    yield from _too_many_messages()


def _standing_still(workers: list[Worker]) -> Iterator[Finding]:
    """Jobs that have waited for long, while nothing of their queue runs."""
    consumed = {queue for worker in workers for queue in worker.queues}
    for status in selectors.queue_statuses().values():
        age_seconds = status.oldest_waiting_seconds or 0
        waiting = _jobs(status.words("waiting"))
        if status.name in consumed and status.waiting and not status.active and age_seconds > START_PATIENCE_SECONDS:
            yield Finding(
                Level.WARNING,
                f"Waiting in {status.name}: {waiting}, the oldest for {age_seconds:.0f} s, while nothing of it runs.",
                "Ask one of them: python manage.py jobs why ID. A limit may hold them; else look at the logs of its "
                "workers.",
            )


def _too_many_messages() -> Iterator[Finding]:
    """More in Redis than the workers could use."""
    with client_within(_PATIENCE_SECONDS) as client:
        counts = Doorbell(client).message_counts(QUEUES)
    if put_aside := dead_letters.count():
        yield Finding(
            Level.WARNING,
            f"Messages of other producers that were no jobs: {put_aside}.",
            "Look at them: python manage.py jobs dead-letters. Put them back by --return, remove them by --drop.",
        )
    for queue, most in selectors.most_messages().items():
        if counts[queue] > most:
            yield Finding(
                Level.WARNING,
                f"Redis holds {counts[queue]} messages of queue {queue}, and its workers can use {most}.",
                "Another producer sends more than they take, or no worker consumes it. Celery's own messages lie in "
                f"the lists {queue}, {queue}:1 and so on.",
            )


@examination("Health")
def as_health_says() -> Iterator[Finding]:
    """What `/health` reports."""
    for reason in health.check().reasons:
        yield Finding(Level.ERROR, reason, "docs/operations.md, Health, says what each of these means.")


@examination("Duties of the dispatcher")
def duties() -> Iterator[Finding]:
    """What those raised last that do not succeed. `/health` names them alone: an error may quote arguments."""
    for name, _, error in selectors.late_duties(after_seconds=health.TICK_AGE_LIMIT_SECONDS):
        if error:
            yield Finding(Level.ERROR, f"{name}: {error}", "The logs of the leading worker have its traceback.")


@examination("Leases")
def leases() -> Iterator[Finding]:
    """Long enough to outlive a pause of the machine, and renewed in time."""
    if settings.JOBS_LEASE_SECONDS < SHORT_LEASE_SECONDS:
        yield Finding(
            Level.WARNING,
            f"Leases last {settings.JOBS_LEASE_SECONDS:g} s: a machine that stands still for so long is given up.",
            f"Set JOBS_LEASE_SECONDS to {SHORT_LEASE_SECONDS:g} or more.",
        )
    late = Worker.objects.filter(dead_at__isnull=True).annotate(left=F("lease_expires_at") - Now()).order_by("node")
    for worker in late:
        left_seconds = worker.left.total_seconds()
        if left_seconds < 0:
            text = f"The lease of worker {worker.node} ran out {-left_seconds:.0f} s ago, and nobody has given it up."
        elif left_seconds < settings.JOBS_LEASE_SECONDS - 3 * settings.JOBS_HEARTBEAT_SECONDS:
            text = f"Worker {worker.node} has not renewed its lease in time: {left_seconds:.1f} s are left."
        else:
            continue
        yield Finding(
            Level.WARNING,
            text,
            "Give its machine more processor or memory, look at the time that it needs to reach PostgreSQL, or set a "
            "longer JOBS_LEASE_SECONDS.",
        )


@examination("Settings")
def unsafe_settings() -> Iterator[Finding]:
    """What Django's and the project's system checks say, those for deployment included."""
    levels = {ERROR: Level.ERROR, WARNING: Level.WARNING}
    for message in run_checks(include_deployment_checks=not settings.DEBUG, databases=["default"]):
        if message.is_silenced():
            continue
        level = next((levels[least] for least in sorted(levels, reverse=True) if message.level >= least), Level.FACT)
        cure = message.hint or f"Look {message.id} up in Django's reference of system checks."
        yield Finding(level, f"{message.msg} ({message.id})".replace("\n", " "), cure.replace("\n", " "))
    if settings.DEBUG:
        yield Finding(
            Level.WARNING, "DEBUG is on: pages of errors show settings and code.", "Unset DEBUG in production."
        )
    if current_app.conf.task_always_eager:
        yield Finding(
            Level.ERROR,
            "CELERY_TASK_ALWAYS_EAGER is on: tasks run in their callers, and none of the promises holds.",
            "Remove the setting.",
        )


def own_versions() -> dict[str, str]:
    """What must be the same everywhere."""
    names = ("Django", "celery", "kombu")
    return {"Python": ".".join(platform.python_version_tuple()[:2]), **{name: version(name) for name in names}}


def _jobs(count: str) -> str:
    return "1 job" if count == "1" else f"{count} jobs"


def _listed(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())
