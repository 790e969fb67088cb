"""`bin/up`: runs the stack in the foreground or detached, tells what runs, stops it."""

import argparse

from devstack import state
from devstack.home import Home
from devstack.status import show
from devstack.terminal import complain

DEFAULT_PORT = 8000


def main(arguments: list[str]) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(arguments)
    home = Home.here()
    if options.json and not options.status:
        complain("--json goes with --status.")
        return 2
    if options.status:
        return show(home, as_json=options.json)
    # Not above: what starting and stopping need takes a second to import, for which nobody wants to wait at --status.
    from devstack import start, stop

    if options.stop:
        return stop.stop(home)
    try:
        home.create()
        if state.is_supervised(home):
            return start.already_runs(home, port=options.port)
        port = options.port or DEFAULT_PORT
        if options.detach:
            return start.detach(home, port=port, reloads=options.reload)
        return start.foreground(home, port=port, reloads=options.reload, follows=not options.supervise)
    except PermissionError as error:
        complain(f"{error}. Did another user start it before? Set HANDOFF_HOME to a folder of your own.")
        return 1


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
