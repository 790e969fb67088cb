"""Starting the stack: in the foreground, or detached."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from devstack import admin, reload, state
from devstack.home import BASE_DIR, Home
from devstack.ports import Ports, PortTaken
from devstack.postgres import CannotCreateCluster
from devstack.redis import NoRedisBinary
from devstack.stack import Stack
from devstack.status import show
from devstack.supervisor import START_TIMEOUT_SECONDS, Interrupted, StartFailed, Supervisor
from devstack.terminal import Follower, complain, last_lines, say, table


def foreground(home: Home, *, port: int, reloads: bool, follows: bool) -> int:
    """Runs the stack in this process until Ctrl-C; `follows` shows the processes' logs."""
    with state.Lock(home) as lock:
        if not lock.take():
            complain("Another bin/up has just started here.")
            return 1
        supervisor = Supervisor(Stack.of(home, Ports(port)))
        supervisor.listen()
        say(f"Handoff starts; its data is in {home.folder}")
        try:
            supervisor.start()
        except (PortTaken, StartFailed, CannotCreateCluster, NoRedisBinary) as error:
            complain(f"Cannot start: {error}")
            return 1
        except Interrupted as error:
            say(str(error))
            return 130
        _announce(supervisor)
        if reloads:
            reload.watch(supervisor.changed)
        follower = Follower({child.name: child.log for child in supervisor.children} if follows else {})
        try:
            supervisor.look_after(follower.copy)
        finally:
            say("Stopping; running jobs are finished first. Once more: stop at once.")
            supervisor.stop()
        follower.copy()
        say("Stopped.")
    return 0


def _announce(supervisor: Supervisor) -> None:
    urls = supervisor.stack.urls()
    say()
    say(table([[child.name, str(child.pid), child.program.where] for child in supervisor.children]))
    say()
    say(table([["admin", urls["admin"]], ["queues", urls["dashboard"]], ["caught mail", urls["mail"]]]))
    say(f"  sign in as {admin.EMAIL}; the password is in {supervisor.home.admin_password}")
    if supervisor.admin_password:
        say(f"  password (shown this once): {supervisor.admin_password}")
    say()
    say("Try it:")
    say(
        f"  curl -i {urls['web']}/signup -H 'Content-Type: application/json' "
        """-d '{"email": "ada@example.com", "name": "Ada", "password": "correct horse battery"}'"""
    )
    say()
    say("ready")


def detach(home: Home, *, port: int, reloads: bool) -> int:
    """Starts the stack in the background; returns 0 when all is ready, else 1 with the reason."""
    log = home.logs / "up.log"
    arguments = ["--supervise", f"--port={port}", *([] if reloads else ["--no-reload"])]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "devstack", "up", *arguments],
            cwd=BASE_DIR,
            env={**os.environ, "HANDOFF_HOME": str(home.folder)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    with log.open() as written, _stops_on_interrupt(process):
        while process.poll() is None:
            _copy(written.read())
            known = state.read(home)
            if known and known["phase"] == "ready" and known["supervisor"]["pid"] == process.pid:
                _copy(written.read())
                return 0
            time.sleep(0.1)
        _copy(written.read())
    complain(f"bin/up did not start (exit status {process.returncode}); logs are in {home.logs}")
    return 1


@contextmanager
def _stops_on_interrupt(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise


def _copy(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def already_runs(home: Home, *, port: int | None) -> int:
    """For a second bin/up: shows what the first one runs, and returns 0, unless this one wants another port."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while (known := state.read(home)) is None or known["phase"] != "ready":
        if not state.is_supervised(home) or time.monotonic() > deadline:
            complain(f"The other bin/up here is not ready, or just ends:\n{last_lines(home.logs / 'up.log')}")
            return 1
        time.sleep(0.2)
    if port and port != known["port"]:
        complain(f"It runs already, on port {known['port']}. For another port: bin/up --stop first.")
        return 1
    say("It runs already; bin/up --stop ends it.")
    show(home, as_json=False)
    say("ready")
    return 0
