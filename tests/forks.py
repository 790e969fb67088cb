"""Processes of the project that start by a fork of one that has loaded what all of them load.

Importing Celery and Django takes half a second of processor time, the project's settings, models, pages and tasks take
another one, and the tests start hundreds of workers. So there are two processes to fork from. One has loaded libraries,
and has read neither settings nor environment: each of its children does that for itself. The other has loaded the
project in the environment that most processes of a test run have, and its children have no other.
"""

import contextlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from types import ModuleType

from devstack.home import BASE_DIR

_LOADED = [
    "av",
    "celery.apps.worker",
    "celery.beat",
    "celery.bin.celery",
    "celery.concurrency.prefork",
    "celery.concurrency.thread",
    "celery.fixups.django",
    "celery.worker.consumer",
    "celery.worker.strategy",
    "cryptography.fernet",
    "django.db.backends.postgresql.base",
    "django.db.models",
    "django.http",
    "django.template.loader",
    "django.test.signals",
    "httpx",
    "kombu.transport.redis",
    "PIL.Image",
    "psycopg",
    "pydantic_settings",
    "redis",
    "tests.forks",
]
# Variables that differ from test to test, and that no module reads which the second process has loaded.
_READ_LATE = {
    *("PYTEST_CURRENT_TEST", "PGAPPNAME", "OFTEN_KILLED", "KILLED_BATCHES", "SIGNALS_FILE"),
    *("CRASH_POINTS", "CRASH_VICTIM", "CRASH_DRAINING", "BEAT_DIES_AT", "BEAT_HANGS", "BEAT_ENTRY", "SCRIPT"),
}
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(_LOADED)


class _Project:
    """The process that has loaded the project."""

    def __init__(self) -> None:
        self._server = forkserver.ForkServer()
        self._server.set_forkserver_preload([*_LOADED, "tests.loaded_project"])
        self._env: dict[str, str] | None = None

    def fits(self, env: Mapping[str, str]) -> bool:
        """Whether a process with this environment may be its child. The first one that asks decides on the usual."""
        wanted = {name: value for name, value in env.items() if name not in _READ_LATE}
        if self._env is None:
            self._env = wanted
            self._start()
        return wanted == self._env

    def _start(self) -> None:
        before = dict(os.environ)
        _become(self._env or {})
        try:
            self._server.ensure_running()
        finally:
            _become(before)

    @contextlib.contextmanager
    def forks(self) -> Iterator[None]:
        """In the block, `multiprocessing` forks from it."""
        usual, forkserver.connect_to_new_process = (
            forkserver.connect_to_new_process,
            self._server.connect_to_new_process,
        )
        try:
            yield
        finally:
            forkserver.connect_to_new_process = usual


_project = _Project()


def _become(env: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(env)


class Fork:
    """`python -m …`, in a process group of its own, with what of `subprocess.Popen` the tests use."""

    def __init__(self, arguments: Sequence[str], *, log: Path, env: Mapping[str, str], folder: Path) -> None:
        self._process = _forks.Process(target=_run, args=(list(arguments), log, dict(env), folder))
        # The child would import this process's main module, and with it settings that are not its own.
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        is_usual = folder == BASE_DIR and _project.fits(env)
        try:
            with _project.forks() if is_usual else contextlib.nullcontext():
                self._process.start()
        finally:
            sys.modules["__main__"] = main
        assert self._process.pid is not None
        self.pid: int = self._process.pid
        # Whoever signals the group must find one.
        with contextlib.suppress(ProcessLookupError):
            while os.getpgid(self.pid) != self.pid and self.poll() is None:
                time.sleep(0.002)

    def poll(self) -> int | None:
        """The exit status; negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end; returns the exit status. Raises TimeoutExpired."""
        self._process.join(timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return status

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.terminate()


def _run(arguments: list[str], log: Path, env: dict[str, str], folder: Path) -> None:
    os.setsid()
    os.chdir(folder)
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    for text in (sys.stdout, sys.stderr):
        text.reconfigure(line_buffering=True, write_through=True)
    _become(env)
    sys.argv, sys.orig_argv = arguments, [sys.executable, "-m", *arguments]
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
