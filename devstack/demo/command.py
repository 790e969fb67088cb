"""The command: finds the running stack or starts one, shows, checks, stops what it started."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import httpx
import psycopg

from devstack.demo import breaking, tour
from devstack.demo.report import Report
from devstack.demo.site import Site, Status
from devstack.home import BASE_DIR, Home
from devstack.ports import free_port
from devstack.terminal import complain, last_lines, say


class NoStack(Exception):
    """The demo could not start a stack of its own; why has been said already."""


def main(arguments: list[str]) -> int:
    """Runs the demo; returns 0 only if every check held."""
    parser = argparse.ArgumentParser(prog="bin/demo", description="Shows the project at work, and checks it.")
    parser.add_argument("--break", dest="breaks", action="store_true", help="kill a worker in the middle of a job")
    parser.add_argument("--users", type=int, default=50, metavar="N", help="how many users sign up (50)")
    parser.add_argument(
        "--stack",
        type=Path,
        metavar="FILE",
        help="use a stack that bin/up has not started: where it is, in the form of bin/up --status --json",
    )
    options = parser.parse_args(arguments)
    if options.breaks and options.stack:
        parser.error("--break needs the processes of bin/up")
    report = Report()
    try:
        with _stack() if options.stack is None else nullcontext() as folder:
            report.begin()
            site = Site(_status(folder) if folder else json.loads(options.stack.read_text()))
            if options.breaks and folder:
                breaking.show(site, report, status=lambda: _status(folder))
            else:
                tour.take(site, report, user_count=max(1, options.users))
            result = report.conclude()
            if result:
                _show_logs(site.home)
            return result
    except NoStack:
        return 1
    except (httpx.HTTPError, psycopg.Error, LookupError, ValueError) as error:
        report.check("the demo could be walked to its end", False, f"{type(error).__name__}: {error}")
        report.conclude()
        return 1
    except KeyboardInterrupt:
        return 130


@contextmanager
def _stack() -> Iterator[Path]:
    """The data folder of the running stack; else of one with data of its own, which leaves nothing behind."""
    home = Home.here()
    if _up(home.folder, "--status", "--json").returncode == 0:
        say(f"The stack of {home.folder} runs: using it.")
        yield home.folder
        return
    with tempfile.TemporaryDirectory(prefix="handoff-demo-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary) / "home"
        say("No stack runs: starting one for the demo.")
        try:
            if _up(folder, "--detach", "--no-reload", f"--port={free_port(20)}", shown=True).returncode:
                raise NoStack
            yield folder
        finally:
            _up(folder, "--stop")
            shutil.rmtree(folder, ignore_errors=True)
    say("The demo's stack is stopped.")


def _up(folder: Path, *arguments: str, shown: bool = False) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "devstack", "up", *arguments],
        check=False,
        cwd=BASE_DIR,
        env={**os.environ, "HANDOFF_HOME": str(folder)},
        stdout=None if shown else subprocess.PIPE,
        text=True,
    )


def _status(folder: Path) -> Status:
    status: Status = json.loads(_up(folder, "--status", "--json").stdout)
    return status


def _show_logs(home: Path) -> None:
    for log in sorted((home / "logs").glob("w*.log")):
        complain(f"The end of {log.name}:\n{last_lines(log)}")
