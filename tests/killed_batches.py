"""Loaded by `--include` into a worker whose processes kill themselves in actions on many jobs, which it does in fives.

The file that KILLED_BATCHES names has a line for each death, of what a process has done: "plain 2" is after its second
statement that acted on plain jobs, "act 3" after the third job that a service has acted on, both before the commit, and
"batch 2" after the commit of its second batch. Each happens once, in the order of the file.
"""

import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

from jobs import batches
from jobs.queues import QUEUES

_seen: Counter[str] = Counter()


def _dies_after(function: Callable[..., Any], event: str) -> Any:
    @wraps(function)
    def act(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        _seen[event] += 1
        file = Path(os.environ["KILLED_BATCHES"])
        first, _, rest = file.read_text().partition("\n")
        if first == f"{event} {_seen[event]}":
            file.write_text(rest)
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return act


# In the worker alone: tests of the same session must not die.
if "KILLED_BATCHES" in os.environ:
    QUEUES["default"] = replace(QUEUES["default"], max_stalls=1000)
    batches.BATCH = 5
    batches.do_one = _dies_after(batches.do_one, "batch")
    batches.act_on_plain = _dies_after(batches.act_on_plain, "plain")
    batches._SERVICES = {kind: _dies_after(act, "act") for kind, act in batches._SERVICES.items()}
