"""A thread of a worker that does something again and again, and outlives every outage of the database."""

import logging
import threading

from django.db import DatabaseError, InterfaceError, connections

from jobs.patience import what_happened
from jobs.told import Told

logger = logging.getLogger(__name__)


class DutyThread(threading.Thread):
    """Calls `run_once()` every `pause_seconds`. Errors are logged and tried again; connections are made anew."""

    pause_seconds: float

    def __init__(self, name: str, pause_seconds: float) -> None:
        super().__init__(name=name, daemon=True)
        self.pause_seconds = pause_seconds
        self.told = Told()
        self._stopping = threading.Event()

    def run_once(self) -> None:
        """One round of the duty."""
        raise NotImplementedError

    def recovered(self) -> None:
        """Called before the first round after a failed one."""

    def run(self) -> None:
        """Rounds until `stop()`."""
        failed = False
        while not self._stopping.is_set():
            try:
                if failed:
                    self.recovered()
                self.run_once()
                failed = False
            except (DatabaseError, InterfaceError) as error:
                logger.warning("%s: %s; trying again.", self.name, what_happened(error))
                failed = True
                connections.close_all()
            except Exception as error:  # a duty that ended would be missed by all; whatever it was, go on
                if self.told.is_new(error):
                    logger.exception("%s: unexpected error; trying again.", self.name)
                failed = True
                connections.close_all()
            self._stopping.wait(self.pause_seconds)
        connections.close_all()

    def stop(self) -> None:
        """Ends the thread after its current round."""
        self._stopping.set()
