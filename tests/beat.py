"""`python -m tests.beat`: a beat that knows the tasks of tests, and dies at a named point of a tick if a test says so.

BEAT_DIES_AT is a file whose text names the point. The beat that comes there takes the file away and kills itself, or
stops as if it hung, where BEAT_HANGS is set.
BEAT_ENTRY is a task that `beat_schedule` has run every second.
"""

import os
import signal
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import django

from config.celery import app

POINTS = [
    "looked, nothing locked",
    "locked",
    "before the job",
    "job written",
    "tick written",
    "before the commit",
    "before the hint",
    "committed",
]


def reached(point: str) -> None:
    """Dies here if the test said so; of several beats one."""
    file = Path(os.environ["BEAT_DIES_AT"])
    if file.exists() and file.read_text() == point:
        file.unlink(missing_ok=True)
        os.kill(os.getpid(), signal.SIGSTOP if "BEAT_HANGS" in os.environ else signal.SIGKILL)


def _around(function: Callable[..., Any], before: str = "", after: str = "") -> Any:
    @wraps(function)
    def with_points(*args: Any, **kwargs: Any) -> Any:
        reached(before)
        result = function(*args, **kwargs)
        reached(after)
        return result

    return with_points


def _set_points() -> None:
    from jobs import publish
    from jobs.cron import ticks
    from jobs.cron.calls import Call

    ticks.decide = _around(ticks.decide, "looked, nothing locked", "committed")
    ticks._lock = _around(ticks._lock, after="locked")
    Call.send = _around(Call.send, "before the job", "job written")  # type: ignore[method-assign]
    ticks._note = _around(ticks._note, "tick written", "before the commit")
    publish.soon = _around(publish.soon, "before the hint")


def main() -> None:
    """Runs beat until it is ended."""
    django.setup()
    for module in ("tests.sample_tasks", "tests.third_party.tasks", "tests.soak.tasks"):
        app.loader.import_task_module(module)
    if "BEAT_ENTRY" in os.environ:
        app.conf.beat_schedule = {"entry of code": {"task": os.environ["BEAT_ENTRY"], "schedule": 1.0}}
    if "BEAT_DIES_AT" in os.environ:
        _set_points()
    app.start(["beat"])


if __name__ == "__main__":
    main()
