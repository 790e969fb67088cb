"""Real worker processes, to be killed, frozen and stopped by tests."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from django.db import connection, connections
from psycopg.pq import TransactionStatus

from devstack.home import BASE_DIR
from tests.forks import Fork
from tests.waiting import wait_until

FAILED = pytest.StashKey[bool]()


# Where the processes of a test find PostgreSQL, if not where the test does.
pooler_port: int | None = None


class Process:
    """A process of the project in its own group; its output is in a file.

    It begins as a fork; with another interpreter, or variables that an interpreter reads at its start, with that.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str],
        python: str | None = None,
        folder: Path = BASE_DIR,
    ) -> None:
        self.log = log
        log.touch()
        is_for_the_interpreter = any(name.startswith("PYTHON") for name in env)
        env = {**os.environ, "PYTHONUNBUFFERED": "1", "LOG_LEVEL": "INFO", **env}
        if python is None and not is_for_the_interpreter:
            self._process: Fork | subprocess.Popen[bytes] = Fork(arguments, log=log, env=env, folder=folder)
            return
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [python or sys.executable, "-m", *arguments],
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The main process, which leads the group."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status; negative for a signal; None while it runs."""
        return self._process.poll()

    @property
    def output(self) -> str:
        """All it has written so far."""
        return self.log.read_text(errors="replace")

    def children(self) -> list[int]:
        """The pids of its pool processes that live."""
        found = []
        for child in psutil.Process(self.pid).children():
            with suppress(psutil.NoSuchProcess):
                if child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child.pid)
        return found

    def kill(self) -> None:
        """SIGKILL for the whole group, as when a machine loses power."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def kill_main(self) -> None:
        """SIGKILL for the main process alone."""
        self._process.kill()
        self._process.wait()

    def kill_child(self, pid: int | None = None) -> int:
        """SIGKILL for one pool process, as when memory runs out; returns its pid."""
        pid = pid or self.children()[0]
        os.kill(pid, signal.SIGKILL)
        return pid

    def freeze(self) -> None:
        """SIGSTOP for the whole group."""
        os.killpg(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT for the whole group."""
        os.killpg(self.pid, signal.SIGCONT)

    def terminate(self, *, group: bool = False) -> None:
        """SIGTERM for the main process, or for the whole group, as some supervisors send it."""
        if group:
            os.killpg(self.pid, signal.SIGTERM)
        else:
            self._process.terminate()

    def drain(self) -> None:
        """SIGTERM for the main process of a worker; returns when it takes no more jobs, while others still run."""
        self.terminate()
        wait_until(lambda: "takes no more jobs" in self.output, reason="it takes no more jobs")

    def wait(self, *, timeout: float = 30) -> int:
        """Waits for its end; returns the exit status."""
        return self._process.wait(timeout)


class Processes:
    """Starts processes of the project on the test database; all are gone when the test ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.started: list[Process] = []

    def start(self, *arguments: str, env: Mapping[str, str] | None = None) -> Process:
        """Starts `python -m …` with the settings of this test run; variables in `env` come on top."""
        log = self._folder / f"{len(self.started)}-{arguments[-1].rpartition('/')[2]}.log"
        process = Process(arguments, log=log, env={"DATABASE_URL": database_url(), **(env or {})})
        self.started.append(process)
        return process

    def worker(
        self,
        *queues: str,
        concurrency: int = 1,
        pool: str = "prefork",
        include: Sequence[str] = ("tests.sample_tasks",),
        env: Mapping[str, str] | None = None,
        waits: bool = True,
        timeout: float = 60,
    ) -> Process:
        """Starts a Celery worker; returns when it consumes, unless `waits` is False. Without queues it takes all."""
        node = f"worker{len(self.started)}@test{os.getpid()}"
        process = self.start(
            "celery",
            "-A",
            "config",
            "worker",
            "--without-mingle",
            "--without-gossip",
            f"--concurrency={concurrency}",
            f"--pool={pool}",
            *([f"--queues={','.join(queues)}"] if queues else []),
            *([f"--include={','.join(include)}"] if include else []),
            f"--hostname={node}",
            env=env,
        )
        if waits:

            def consumes() -> bool:
                if process.status is not None:
                    pytest.fail(f"The worker ended with status {process.status}:\n{process.output}")
                return f"{node} ready." in process.output

            wait_until(consumes, timeout=timeout, reason=f"{node} is ready")
        return process

    def stop_all(self) -> None:
        """Kills whatever still runs."""
        for process in self.started:
            process.kill()


def database_url() -> str:
    """The database of this test, as a URL: the test's own, not the one that the settings name."""
    settings: dict[str, Any] = connection.settings_dict
    port = pooler_port or settings["PORT"]
    return "postgres://{USER}:{PASSWORD}@{HOST}:{port}/{NAME}".format(**settings, port=port)


@pytest.fixture
def processes(
    request: pytest.FixtureRequest, transactional_db: None, empty_redis: None, tmp_path: Path
) -> Iterator[Processes]:
    """Starts workers and other processes on the test database. Their output is shown when the test fails."""
    started = Processes(tmp_path)
    yield started
    started.stop_all()
    if request.node.stash.get(FAILED, False):
        for process in started.started:
            sys.stdout.write(f"--- {process.log.name}\n{process.output}\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Remembers a failure for the fixture above, and keeps it from the tests that follow."""
    report: Any = yield
    if report.failed:
        item.stash[FAILED] = True
        _drop_broken_connections()
    return report


def _drop_broken_connections() -> None:
    # A time-out interrupts a query anywhere; psycopg would answer each later one that another command is in progress.
    for broken in connections.all(initialized_only=True):
        inner: Any = broken.connection
        if inner is not None and inner.info.transaction_status == TransactionStatus.ACTIVE:
            broken.close()
