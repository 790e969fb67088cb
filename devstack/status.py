"""`bin/up --status`: tells what runs."""

import json
from typing import TypedDict

from devstack import state
from devstack.home import Home
from devstack.terminal import say, table

# As LSB has it for status commands: the program does not run.
NOT_RUNNING = 3


class Seen(TypedDict):
    """A process as it is shown."""

    name: str
    pid: int | None
    state: str


def show(home: Home, *, as_json: bool) -> int:
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


def _seen(process: state.ProcessState, *, supervised: bool) -> Seen:
    alive = state.lives(process)
    # Between its end and the supervisor's next look a process is still written down as running.
    shown = process["state"] if alive or process["pid"] is None else "restarting" if supervised else "stopped"
    if not supervised and process["pid"] is None:
        shown = "stopped"
    return {"name": process["name"], "pid": process["pid"] if alive else None, "state": shown}
