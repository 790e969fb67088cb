"""The supervisor: starts the stack step by step, looks after it, and stops it in order."""

import os
import queue
import signal
import time
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Literal

import psutil

from devstack import admin, state
from devstack.child import Child, how
from devstack.launch import Launch
from devstack.ports import require_free
from devstack.program import Program, Stage
from devstack.stack import Stack, worker_grace_seconds
from devstack.terminal import last_lines, say

TICK_SECONDS = 0.1
START_TIMEOUT_SECONDS = 120

Phase = Literal["starting", "ready", "stopping", "stopped", "failed"]


class StartFailed(Exception):
    """The stack cannot run; the message says why, with the last lines of the log."""


class Interrupted(Exception):
    """A person wants the stack to stop while it starts."""


class Supervisor:
    """Runs one stack in this process, until a signal ends it."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.home = stack.home
        self.children: list[Child] = []
        self.admin_password: str | None = None
        self._phase: Phase = "starting"
        self._failure = ""
        self._written: state.State | None = None
        self._signals = 0
        self._changes: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen(self) -> None:
        """Takes Ctrl-C, SIGTERM and a closed terminal as the wish to stop; a second one as the wish to hurry."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note_signal)

    def _note_signal(self, *_: object) -> None:
        self._signals += 1

    @property
    def is_wanted(self) -> bool:
        """Whether nobody has asked for the end."""
        return self._signals == 0

    def changed(self, path: str) -> None:
        """A source file has changed: the processes that run it start again. Called from another thread."""
        self._changes.put(path)

    def start(self) -> None:
        """Starts everything, with a line per step. Raises StartFailed, PortTaken or Interrupted, with nothing left."""
        try:
            self.stop_leftovers()
            self._write_state()
            require_free(self.stack.wanted_ports())
            self.stack.write_environment()
            self._start_servers()
            self._run("migrate", self.stack.manage("migrate", "--no-input"), "the tables of the database")
            self.admin_password = admin.ensure(self.stack, run=self._run)
            self._start_all(self.stack.processes())
        except BaseException as error:
            self._failure = str(error) or type(error).__name__
            self.stop(last_phase="failed")
            raise
        self._phase = "ready"
        self._write_state()

    def look_after(self, beside: Callable[[], None]) -> None:
        """Keeps everything running until a signal comes; calls `beside` each time round."""
        while self.is_wanted:
            self._tick()
            self._reload()
            beside()
            time.sleep(TICK_SECONDS)

    def stop(self, last_phase: Phase = "stopped") -> None:
        """Stops everything in order: what takes work in, the workers once their running jobs are done, the servers. A
        second signal meanwhile kills."""
        self._phase = "stopping"
        before = self._signals
        for _, group in groupby(sorted(self.children, key=_stage), key=_stage):
            children = list(group)
            for child in children:
                child.stop()
            self._write_state()
            while any(child.state != "stopped" for child in children):
                if self._signals > max(before, 1):
                    for child in children:
                        child.kill()
                self._tick()
                time.sleep(TICK_SECONDS / 2)
        self._phase = last_phase
        self._write_state()

    def stop_leftovers(self) -> None:
        """Ends what a supervisor that was killed has left: workers may finish their jobs, servers keep their data."""
        left = state.leftovers(self.home)
        if self.stack.postgres and (postmaster := self.stack.postgres.leftover()):
            left["postgres"] = [postmaster]
        if not left:
            return
        say(f"Stopping what an earlier start has left: {', '.join(sorted(left))}")
        stages = {program.name: program for program in [*self.stack.servers(), *self.stack.processes()]}
        for _, names in groupby(sorted(left, key=lambda name: stages[name].stage), key=lambda name: stages[name].stage):
            stop_processes([(process, stages[name].stop_signal) for name in names for process in left[name]])

    def _start_servers(self) -> None:
        if self.stack.postgres:
            if not self.stack.postgres.exists:
                say("  creating the database, once")
            self.stack.postgres.prepare()
        if self.stack.redis:
            self.stack.redis.prepare()
        self._start_all(self.stack.servers())
        if self.stack.postgres:
            self.stack.postgres.create_database()

    def _start_all(self, programs: Iterable[Program]) -> None:
        began = time.monotonic()
        new = [Child(each, home=self.home.folder, log=self.home.logs / f"{each.name}.log") for each in programs]
        self.children += new
        for child in new:
            child.start()
        waiting = list(new)
        while waiting:
            self._tick()
            for child in [child for child in waiting if child.state == "running"]:
                waiting.remove(child)
                say(f"  {child.name} is ready ({time.monotonic() - began:.1f} s)")
            self._require(waiting, began)
            time.sleep(TICK_SECONDS / 2)

    def _require(self, waiting: list[Child], began: float) -> None:
        if not self.is_wanted:
            raise Interrupted("Stopped while starting.")
        if broken := next((child for child in self.children if child.last_end), None):
            raise StartFailed(f"{broken.last_end}. The end of {broken.log}:\n{last_lines(broken.log)}")
        if waiting and time.monotonic() - began > START_TIMEOUT_SECONDS:
            log = waiting[0].log
            late = f"{waiting[0].name} is not ready after {START_TIMEOUT_SECONDS} s"
            raise StartFailed(f"{late}. The end of {log}:\n{last_lines(log)}")

    def _run(self, name: str, launch: Launch, purpose: str) -> None:
        """Runs a command to its end; the servers are looked after meanwhile."""
        began = time.monotonic()
        log = self.home.logs / f"{name}.log"
        with log.open("wb") as output:
            process = launch.start(output=output.fileno())
            while process.poll() is None:
                self._tick()
                try:
                    self._require([], began)
                except (Interrupted, StartFailed):
                    process.kill()
                    process.wait()
                    raise
                time.sleep(TICK_SECONDS / 2)
        if process.returncode:
            raise StartFailed(f"{name} ended {how(process.returncode)}. The end of {log}:\n{last_lines(log)}")
        say(f"  {purpose}: done ({time.monotonic() - began:.1f} s)")

    def _tick(self) -> None:
        for child in self.children:
            if (news := child.tick()) and self._phase != "starting":
                say(f"{time.strftime('%H:%M:%S')} {news}")
        self._write_state()

    def _reload(self) -> None:
        paths = set()
        while not self._changes.empty():
            paths.add(self._changes.get())
        if paths:
            say(f"{time.strftime('%H:%M:%S')} {', '.join(sorted(paths))} changed: web, workers and beat start again")
            for child in self.children:
                if child.program.reloads:
                    child.stop(again=True)

    def _write_state(self) -> None:
        now: state.State = {
            "supervisor": {
                "name": "supervisor",
                "pid": os.getpid(),
                "created": state.created(os.getpid()),
                "state": "running",
            },
            "port": self.stack.ports.web,
            "phase": self._phase,
            "failure": self._failure,
            "processes": [child.described() for child in self.children],
            "urls": self.stack.urls(),
        }
        if now != self._written:
            state.write(self.home, now)
            self._written = now


def stop_processes(processes: list[tuple[psutil.Process, signal.Signals]]) -> None:
    """Ends processes that are nobody's children: asks those that lead a group, waits as long as a worker may need, then
    kills whatever is left."""
    for process, number in processes:
        try:
            if os.getpgid(process.pid) == process.pid:
                process.send_signal(number)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    _, alive = psutil.wait_procs([process for process, _ in processes], timeout=worker_grace_seconds())
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=5)


def _stage(child: Child) -> Stage:
    return child.program.stage
