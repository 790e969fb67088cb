"""Throw-away servers for tests and checks: real ones, on free ports, gone afterwards.

They end with the process that started them, however it ends; what a killed one has left on disk, the next removes.
"""

import atexit
import ctypes
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from devstack.environment import REDIS_NAMES
from devstack.ports import LOOPBACK, free_port
from devstack.postgres import Postgres
from devstack.redis import Redis
from devstack.state import created
from devstack.terminal import last_lines

PREFIX = "handoff-throwaway-"
OWNER = "owner.json"
START_TIMEOUT_SECONDS = 60
PR_SET_PDEATHSIG = 1


class ServerDidNotStart(Exception):
    """A throw-away server ended or hung at its start; the message holds the end of its log."""


class Server:
    """One real server that a test may stop, kill, freeze and start again. All calls return when it is done."""

    def __init__(self, engine: Postgres | Redis, *, stop_signal: signal.Signals) -> None:
        self.engine = engine
        self.log = engine.folder / "server.log"
        self._stop_signal = stop_signal
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The server's process."""
        if self._process is None:
            raise ProcessLookupError("The server does not run.")
        return self._process.pid

    def start(self) -> None:
        """Starts it on its port, with the data it had; returns when it answers."""
        self.engine.prepare()
        with self.log.open("ab") as output:
            self._process = self.engine.launch().start(output=output.fileno(), preexec_fn=_ends_with_parent())
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not self.engine.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ServerDidNotStart(f"{self.engine.folder.name} did not start:\n{last_lines(self.log)}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ends it in good order, also when it is frozen."""
        self._end(self._stop_signal)

    def kill(self) -> None:
        """Ends it with SIGKILL."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stops and starts it."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """It hangs: connections are accepted by the kernel, nothing is answered."""
        self._each(psutil.Process.suspend)

    def thaw(self) -> None:
        """It goes on as if nothing had been."""
        self._each(psutil.Process.resume)

    def _each(self, act: Callable[[psutil.Process], None]) -> None:
        leader = psutil.Process(self.pid)
        for process in [leader, *leader.children(recursive=True)]:
            # Backends come and go; one that has ended meanwhile needs nothing.
            with suppress(psutil.NoSuchProcess):
                act(process)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        with suppress(psutil.NoSuchProcess):
            self.thaw()
        self._process.send_signal(number)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


class Servers:
    """The servers that the environment does not name, and the variables by which the project finds them.

    `durable` servers write to the disk as in production, which only a benchmark wants.
    """

    def __init__(self, *, durable: bool = False) -> None:
        _sweep()
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        (self.folder / OWNER).write_text(json.dumps({"pid": os.getpid(), "created": created(os.getpid())}))
        # WhiteNoise warns about a folder of static files that is not there.
        (self.folder / "home" / "static").mkdir(parents=True)
        self.variables = {
            "HANDOFF_HOME": str(self.folder / "home"),
            "SECRET_KEY": secrets.token_urlsafe(32),
            "ALLOWED_HOSTS": f"localhost,{LOOPBACK}",
            "EMAIL_HOST": LOOPBACK,
            "EMAIL_PORT": str(free_port()),
        }
        self.postgres: Server | None = None
        self.redis: Server | None = None
        # Only the real environment counts here: a test must never touch the database that .env or bin/up names.
        if not os.environ.get("DATABASE_URL"):
            postgres = Postgres(
                folder=self.folder / "postgres", port=free_port(), password=secrets.token_urlsafe(16), durable=durable
            )
            self.postgres = Server(postgres, stop_signal=signal.SIGINT)
            self.variables["DATABASE_URL"] = postgres.url("postgres")
        if not any(os.environ.get(name) for name in REDIS_NAMES):
            redis = Redis(
                folder=self.folder / "redis", port=free_port(), password=secrets.token_urlsafe(16), durable=durable
            )
            self.redis = Server(redis, stop_signal=signal.SIGTERM)
            self.variables["REDIS_URL"] = redis.url

    def start(self) -> None:
        """Starts them; they are stopped when this process ends, at the latest."""
        atexit.register(self.stop)
        for server in (self.postgres, self.redis):
            if server:
                server.start()

    def stop(self) -> None:
        """Ends them and removes their data. May be called twice."""
        atexit.unregister(self.stop)
        for server in (self.postgres, self.redis):
            if server:
                # Nobody needs the data: no reason to wait for anything.
                server.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def main(arguments: list[str]) -> int:
    """Runs a command with throw-away servers around it; returns the command's exit status."""
    servers = Servers()
    try:
        servers.start()
        return subprocess.run(arguments, check=False, env={**os.environ, **servers.variables}).returncode
    finally:
        servers.stop()


def _sweep() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError, ValueError):
            owner = json.loads((folder / OWNER).read_text())
            if created(owner["pid"]) != owner["created"]:
                shutil.rmtree(folder, ignore_errors=True)


def _ends_with_parent() -> Callable[[], None] | None:
    """What makes a child end when this process is killed; only Linux has it."""
    if sys.platform != "linux":
        return None
    # Loaded before the fork: between fork and exec a child must not import.
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    return ask
