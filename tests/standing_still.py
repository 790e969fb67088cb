"""A command to a worker under which its main thread does nothing else: a worker loads it with `-I`."""

import time
from typing import Any

from celery.worker.control import control_command


@control_command(args=[("seconds", float)])
def stand_still(state: Any, seconds: float) -> None:
    """Keeps the main thread for so long, as a library that waits for a hung server would."""
    time.sleep(seconds)
