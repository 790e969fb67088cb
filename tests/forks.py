"""Processes of the project that start by a fork of one that has loaded what all of them load.

Importing Celery and Django takes half a second of processor time, and the tests start hundreds of workers. Nothing that
is loaded beforehand has read settings or environment: each process does that for itself.
"""

import contextlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

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
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(_LOADED)


class Fork:
    """`python -m …`, in a process group of its own, with what of `subprocess.Popen` the tests use."""

    def __init__(self, arguments: Sequence[str], *, log: Path, env: Mapping[str, str], folder: Path) -> None:
        self._process = _forks.Process(target=_run, args=(list(arguments), log, dict(env), folder))
        # The child would import this process's main module, and with it settings that are not its own.
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
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
    os.environ.clear()
    os.environ.update(env)
    sys.argv, sys.orig_argv = arguments, [sys.executable, "-m", *arguments]
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
