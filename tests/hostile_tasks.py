"""Tasks whose bodies do what no body should; a worker loads them with `-I tests.hostile_tasks`."""

import asyncio
import gc
import importlib
import logging
import multiprocessing
import os
import resource
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from celery import shared_task
from celery.exceptions import SoftTimeLimitExceeded
from django.contrib.auth.models import Group
from django.db import DatabaseError, connection, connections, transaction
from django.utils import timezone, translation

from jobs.task import JobTask

RAISED: dict[str, Any] = {
    "SystemExit": lambda: sys.exit("the library gives up"),
    "CancelledError": lambda: _raise(asyncio.CancelledError("the loop is closed")),
    "GeneratorExit": lambda: _raise(GeneratorExit("the generator is closed")),
    "KeyboardInterrupt": lambda: _raise(KeyboardInterrupt("by hand")),
    "Unusual": lambda: _raise(Unusual("of no known kind")),
}


class Unusual(BaseException):
    """What passes every `except Exception`."""


def _raise(error: BaseException) -> None:
    raise error


@shared_task(queue="default")
def raises(name: str) -> None:
    RAISED[name]()


@shared_task(queue="default", atomic=True)
def raises_atomically(name: str) -> None:
    Group.objects.create(name=f"raised {name}")
    RAISED[name]()


def _open_blocks() -> None:
    transaction.atomic().__enter__()
    Group.objects.create(name="in a block that is left open")


def _begin() -> None:
    _execute("BEGIN")
    Group.objects.create(name="after a BEGIN")


def _without_autocommit() -> None:
    connection.set_autocommit(False)
    Group.objects.create(name="without autocommit")


def _aborted() -> None:
    _execute("BEGIN")
    with suppress(DatabaseError):
        _execute("SELECT 1 / 0")


def _execute(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def _execute_raw(statement: str) -> None:
    connection.ensure_connection()
    with connection.connection.cursor() as cursor:
        cursor.execute(statement)


def _set_row_factory() -> None:
    from psycopg.rows import dict_row

    connection.ensure_connection()
    connection.connection.row_factory = dict_row


# What a body leaves on its connection.
LEFT: dict[str, Any] = {
    "a block": _open_blocks,
    "BEGIN": _begin,
    "COMMIT": lambda: _execute("COMMIT"),
    "no autocommit": _without_autocommit,
    "an aborted transaction": _aborted,
    "search_path": lambda: _execute("SET search_path TO pg_catalog"),
    "raw search_path": lambda: _execute_raw("/* quietly */ set search_path to pg_catalog"),
    "set_config": lambda: _execute("SELECT pg_catalog.set_config('search_path', 'pg_catalog', false)"),
    "role": lambda: _execute("SET ROLE pg_monitor"),
    "statement_timeout": lambda: _execute("SET statement_timeout = 100"),
    "read only": lambda: _execute("SET default_transaction_read_only = on"),
    "time zone": lambda: _execute("SET TIME ZONE 'Pacific/Auckland'"),
    "temporary table": lambda: _execute("CREATE TEMPORARY TABLE jobs_job (id int)"),
    "advisory lock": lambda: _execute("SELECT pg_advisory_lock(4711)"),
    "LISTEN": lambda: _execute("LISTEN gossip"),
    "PREPARE": lambda: _execute("PREPARE plan AS SELECT 1"),
    "DECLARE": lambda: _execute("DECLARE held CURSOR WITH HOLD FOR SELECT 1"),
    "row_factory": _set_row_factory,
    "a wrapper": lambda: connection.execute_wrappers.append(_refuse),
    "DO": lambda: _execute("DO $$ BEGIN PERFORM set_config('search_path', 'pg_catalog', false); END $$"),
}


def _refuse(execute: Any, *args: Any) -> Any:
    raise ZeroDivisionError


@shared_task(bind=True, queue="default")
def leaves(self: Any, what: str) -> str:
    LEFT[what]()
    # The ledger's own statements do not meet it either; what a DO does is not seen.
    if what not in ("DO", "row_factory", "a wrapper", "an aborted transaction", "BEGIN"):
        self.progress(1, 2, what)
        self.check_cancelled()
    return what


@shared_task(queue="default", atomic=True)
def leaves_atomically(what: str) -> str:
    Group.objects.create(name=f"kept with {what}")
    LEFT[what]()
    return what


@shared_task(queue="default")
def session_seen() -> dict[str, Any]:
    """What a body finds on its connection."""
    names = ("search_path", "role", "statement_timeout", "default_transaction_read_only", "TimeZone")
    questions = {
        "temporary tables": "SELECT count(*) FROM pg_class WHERE relpersistence = 't'",
        "advisory locks": "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        "channels": "SELECT count(*) FROM pg_listening_channels()",
        "prepared": "SELECT count(*) FROM pg_prepared_statements WHERE from_sql",
        "cursors": "SELECT count(*) FROM pg_cursors WHERE is_holdable",
    }
    with connection.cursor() as cursor:
        found: dict[str, Any] = {}
        for name, statement in [*((name, f"SHOW {name}") for name in names), *questions.items()]:
            cursor.execute(statement)
            [found[name]] = cursor.fetchone()
    return {**found, "in a block": connection.in_atomic_block, "autocommit": connection.autocommit}


def _surroundings() -> dict[str, Any]:
    umask = os.umask(0o077)
    os.umask(umask)
    return {
        "folder": str(Path.cwd()),
        "umask": umask,
        "socket": socket.getdefaulttimeout(),
        "gc": gc.isenabled(),
        "language": translation.get_language(),
        "time zone": timezone.get_current_timezone_name(),
        "alarm": signal.getitimer(signal.ITIMER_REAL)[0] > 0,
        "SIGUSR2": str(signal.getsignal(signal.SIGUSR2)),
        "level": logging.getLogger("some.library").level,
        "disabled": logging.root.manager.disable,
    }


@shared_task(queue="default")
def surroundings_seen() -> dict[str, Any]:
    """What a body finds in its process."""
    logging.getLogger("some.library")
    return _surroundings()


@shared_task(queue="default")
def changes_its_surroundings() -> dict[str, Any]:
    os.chdir("/")
    os.umask(0o177)
    socket.setdefaulttimeout(0.001)
    gc.disable()
    translation.activate("de")
    timezone.activate("Pacific/Auckland")
    logging.getLogger("some.library").setLevel(logging.CRITICAL)
    logging.disable(logging.CRITICAL)
    try:
        signal.signal(signal.SIGUSR2, _refuse)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
    except ValueError:
        pass  # not the main thread: out of reach of this body
    return _surroundings()


@shared_task(queue="default")
def process_seen() -> dict[str, Any]:
    """What a body finds in its process that is not set back."""
    return {
        "environment": os.environ.get("LEFT_BEHIND"),
        "threads": sorted(thread.name for thread in threading.enumerate() if thread.name == "left behind"),
        "modules": "wave" in sys.modules,
        "limits": resource.getrlimit(resource.RLIMIT_NOFILE),
    }


@shared_task(queue="default")
def changes_its_process() -> None:
    os.environ["LEFT_BEHIND"] = "by a body"
    threading.Thread(target=time.sleep, args=(600,), name="left behind", daemon=True).start()
    importlib.import_module("wave")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))


@shared_task(queue="default")
def forks() -> list[int]:
    """Has other processes do its work."""
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(abs, [-1, -2])


def _time_out() -> None:
    _execute("SET LOCAL idle_in_transaction_session_timeout = 100")
    time.sleep(0.5)


def _survive_the_limit() -> None:
    with suppress(SoftTimeLimitExceeded):
        _execute("SELECT pg_sleep(5)")


# How an atomic task loses its connection.
LOST: dict[str, Any] = {
    "closes it": lambda: connection.close(),
    "closes all": connections.close_all,
    "closes it below Django": lambda: connection.connection.close(),
    "is idle for too long": _time_out,
    "is ended by PostgreSQL": lambda: _end_own_backend(),
    "catches its limit": _survive_the_limit,
}


def _end_own_backend() -> None:
    with suppress(DatabaseError):
        _execute("SELECT pg_terminate_backend(pg_backend_pid())")


@shared_task(queue="default", atomic=True, soft_time_limit=1, time_limit=30)
def loses_its_connection(how: str, path: str) -> None:
    Group.objects.create(name=f"kept by {how}")
    with Path(path).open("a") as file:
        file.write(f"{how}\n")
    LOST[how]()


@shared_task(bind=True, queue="default")
def reports_oddly(self: Any) -> str:
    logging.getLogger("some\0library").warning("of a first logger")
    for message in ("a\0b", "\ud800" * 1000, "x" * 10_000, 5, None, ["\0"]):
        self.progress(1, 2, message)
        self.update_state(state="STRANGE\0\ud800", meta={"message": message})
        time.sleep(0.1)
    for done, total in ((float("nan"), 1), (1, float("nan")), (float("inf"), 1), (-5, 0), (10**400, 10**399)):
        self.progress(done, total)
    for meta in ({"deep": _nested(600)}, {"large": "x" * 2_000_000}, {"object": object()}, {5: float("nan")}):
        self.update_state(state="STRANGE", meta=meta)
    logging.getLogger("\ud800").warning("of a second logger")
    return "done"


def _nested(levels: int) -> Any:
    return [_nested(levels - 1)] if levels else 1


class CallsRun(JobTask):
    """As Celery's guide writes it."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


class Foreign:
    """A class of another library's, which knows nothing of jobs."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)  # type: ignore[attr-defined]

    def before_start(self, task_id: str, args: list[Any], kwargs: dict[str, Any]) -> None:
        self.seen = list(args)


class Mixed(Foreign, JobTask):
    """It hides `__call__` and `before_start`."""

    abstract = True


def _body(task: Any, what: str) -> Any:
    from jobs.errors import RateLimited

    if what == "returns":
        Group.objects.create(name=f"by {task.name}")
        return what
    if what == "fails":
        Group.objects.create(name=f"by {task.name}")
        raise ValueError(what)
    if what == "replaces":
        return task.replace(session_seen.s())
    if what == "is told to wait":
        raise RateLimited("later", retry_after_seconds=600)
    if what == "needs too much memory":
        raise MemoryError(what)
    if what == "calls itself":
        return task("returns")
    raise AssertionError(what)


@shared_task(bind=True, base=CallsRun, queue="default", atomic=True)
def calls_run(self: Any, what: str) -> Any:
    return _body(self, what)


@shared_task(bind=True, base=Mixed, queue="default", atomic=True)
def is_mixed(self: Any, what: str) -> Any:
    assert self.seen == [what] or what == "returns"
    return _body(self, what)
