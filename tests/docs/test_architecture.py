"""`docs/architecture.md`: its drawing of domain events is what the apps are connected by."""

import re

from django.dispatch import Signal

from accounts import signals as accounts
from devstack.home import BASE_DIR
from media_jobs import signals as media_jobs
from reports import signals as reports

PAGE = (BASE_DIR / "docs" / "architecture.md").read_text()


def test_the_events_are_drawn_as_they_are_connected() -> None:
    drawn = set(re.findall(r"^    (\w+\.signals\.\w+) --> ([\w.]+)$", PAGE, re.MULTILINE))
    connected = set()
    for module in (accounts, media_jobs, reports):
        for name, signal in vars(module).items():
            if not isinstance(signal, Signal):
                continue
            for entry in signal.receivers:
                receiver = entry[1]()
                assert receiver is not None
                connected.add((f"{module.__name__}.{name}", f"{receiver.__module__}.{receiver.__name__}"))
    assert drawn == connected
