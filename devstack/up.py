"""`bin/up`: runs the stack in the foreground or detached, tells what runs, stops it."""

import argparse
import json
import os
import signal
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
from devstack.supervisor import START_TIMEOUT_SECONDS, Interrupted, StartFailed, Supervisor
from devstack.terminal import Follower, complain, last_lines, say, table

# As LSB has it for status commands: the program does not run.
NOT_RUNNING = 3
DEFAULT_PORT = 8000


def main(arguments: list[str]) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(arguments)
    home = Home.here()
    if options.json and not options.status:
        complain("--json goes with --status.")
        return 2
    if options.status:
        return status(home, as_json=options.json)
    if options.stop:
        return stop(home)
    home.create()
    if state.is_supervised(home):
        return _already_runs(home, options)
    port = options.port or DEFAULT_PORT
    if options.detach:
        return detach(home, port=port, reloads=options.reload)
    return foreground(home, port=port, reloads=options.reload, follows=not options.supervise)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bin/up", description="Runs the whole project on this machine.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--detach", action="store_true", help="return when all is ready, and go on in the background")
    what.add_argument("--stop", action="store_true", help="stop what runs; running jobs are finished or handed back")
    what.add_argument("--status", action="store_true", help="tell what runs; exit status 3 when it does not")
    what.add_argument("--supervise", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="with --status: JSON alone")
    parser.add_argument("--port", type=_port, metavar="N", help="the web's port; all others within N+1 … N+19 (8000)")
    parser.add_argument("--no-reload", dest="reload", action="store_false", help="do not restart when a file changes")
    return parser


def _port(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65_516:
        raise argparse.ArgumentTypeError("expected 1 to 65516, because the 19 ports after it are used too")
    return port


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
        supervisor.look_after(follower.copy)
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


def _already_runs(home: Home, options: argparse.Namespace) -> int:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while (known := state.read(home)) is None or known["phase"] == "starting":
        if not state.is_supervised(home) or time.monotonic() > deadline:
            complain(f"Another bin/up is starting here and does not get ready:\n{last_lines(home.logs / 'up.log')}")
            return 1
        time.sleep(0.2)
    if known["phase"] != "ready":
        complain("It is just stopping. Try again in a moment.")
        return 1
    if options.port and options.port != known["port"]:
        complain(f"It runs already, on port {known['port']}. For another port: bin/up --stop first.")
        return 1
    say("It runs already; bin/up --stop ends it.")
    status(home, as_json=False)
    say("ready")
    return 0


def status(home: Home, *, as_json: bool) -> int:
    """Tells what runs; returns 0 when all of it does, else 3."""
    known = state.read(home)
    supervised = state.is_supervised(home)
    processes = [_seen(process, supervised=supervised) for process in known["processes"]] if known else []
    urls = known["urls"] if known else {}
    if as_json:
        say(json.dumps({"processes": processes, "urls": urls, "home": str(home.folder)}, indent=2))
    elif known is None or not (supervised or any(process["pid"] for process in processes)):
        say(f"Nothing runs in {home.folder}; bin/up starts it.")
    else:
        say(table([[process["name"], str(process["pid"] or "-"), process["state"]] for process in processes]))
        say()
        say(table([[name, url] for name, url in urls.items()]))
        if not supervised:
            say("The supervisor was killed: bin/up cleans up and starts again, bin/up --stop only cleans up.")
    all_run = supervised and bool(processes) and all(process["state"] == "running" for process in processes)
    return 0 if all_run and known and known["phase"] == "ready" else NOT_RUNNING


def _seen(process: state.ProcessState, *, supervised: bool) -> dict[str, object]:
    alive = state.lives(process)
    # Between its end and the supervisor's next look a process is still written down as running.
    shown = process["state"] if alive or process["pid"] is None else "restarting" if supervised else "stopped"
    if not supervised and process["pid"] is None:
        shown = "stopped"
    return {"name": process["name"], "pid": process["pid"] if alive else None, "state": shown}


def stop(home: Home) -> int:
    """Stops what runs, also what a killed supervisor has left; returns 0 when nothing runs any more."""
    known = state.read(home)
    if not home.folder.exists() or known is None:
        say(f"Nothing runs in {home.folder}.")
        return 0
    if not state.is_supervised(home):
        return _stop_leftovers(home, known["port"])
    supervisor = known["supervisor"]
    if supervisor["pid"] is None or not state.lives(supervisor):
        complain("Another bin/up is just starting here. Try again in a moment.")
        return 1
    say("Stopping; running jobs are finished first.")
    os.kill(supervisor["pid"], signal.SIGTERM)
    while state.is_supervised(home):
        time.sleep(0.1)
    say("Stopped.")
    return 0


def _stop_leftovers(home: Home, port: int) -> int:
    with state.Lock(home) as lock:
        if not lock.take():
            complain("Another bin/up has just started here.")
            return 1
        supervisor = Supervisor(Stack.of(home, Ports(port)))
        supervisor.stop_leftovers()
        supervisor.stop()
    say("Nothing runs any more.")
    return 0
