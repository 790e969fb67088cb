"""`bin/up --stop`."""

import os
import signal
import time

from devstack import state
from devstack.home import Home
from devstack.ports import Ports
from devstack.stack import Stack
from devstack.supervisor import Supervisor
from devstack.terminal import complain, say


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
