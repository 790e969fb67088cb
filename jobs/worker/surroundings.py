"""What a body may change in its process, set back between runs: to what it was before this process's first run.

In a pool of threads, what belongs to the process is shared by the runs of that moment. Only the thread's own language
and time zone are each run's.
"""

import _signal  # type: ignore[import-not-found]
import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.utils import timezone, translation

_SIGNALS = sorted(int(one) for one in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})


class Surroundings:
    """What is set back, as it was at one moment."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._folder = Path.cwd()
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._socket_seconds = socket.getdefaulttimeout()
        self._gc = gc.isenabled(), gc.get_threshold(), gc.get_debug()
        self._disabled_level = logging.root.manager.disable
        self._loggers: list[tuple[logging.Logger, int, bool, bool]] = []
        self._known: set[str] = set()
        self._count = -1
        self._handlers = _handlers()
        self._know_loggers()

    def set_back(self) -> None:
        """Sets all of it back."""
        translation.deactivate()
        timezone.deactivate()
        if threading.current_thread() is threading.main_thread():
            self._set_signals_back()
        try:
            if Path.cwd() != self._folder:
                os.chdir(self._folder)
        except FileNotFoundError:
            os.chdir(self._folder)
        os.umask(self._umask)
        if socket.getdefaulttimeout() != self._socket_seconds:
            socket.setdefaulttimeout(self._socket_seconds)
        self._set_gc_back()
        self._set_loggers_back()

    def _set_signals_back(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        for number, handler in _handlers().items():
            first = self._handlers[number]
            # A handler that was set outside of Python cannot be set again.
            # Those of the system are numbers.
            if handler != first and first is not None:
                signal.signal(number, first)

    def _set_gc_back(self) -> None:
        enabled, thresholds, debug = self._gc
        if gc.isenabled() != enabled:
            (gc.enable if enabled else gc.disable)()
        if gc.get_threshold() != thresholds:
            gc.set_threshold(*thresholds)
        if gc.get_debug() != debug:
            gc.set_debug(debug)

    def let_all_log(self) -> None:
        """Sets back what is logged at all."""
        if logging.root.manager.disable != self._disabled_level:
            logging.disable(self._disabled_level)

    def _set_loggers_back(self) -> None:
        self.let_all_log()
        for logger, level, is_disabled, propagates in self._loggers:
            if logger.level != level:
                logger.setLevel(level)
            if logger.disabled != is_disabled or logger.propagate != propagates:
                logger.disabled, logger.propagate = is_disabled, propagates
        self._know_loggers()

    def _know_loggers(self) -> None:
        """A logger that came with a module that a body has imported keeps what that module has set."""
        there: dict[str, Any] = logging.root.manager.loggerDict
        if len(there) == self._count:
            return
        self._count = len(there)
        for name, logger in [("", logging.root), *list(there.items())]:
            if isinstance(logger, logging.Logger) and name not in self._known:
                self._loggers.append((logger, logger.level, logger.disabled, logger.propagate))
                self._known.add(name)


def _handlers() -> dict[int, Any]:
    # What `signal.getsignal` asks, which makes an enumeration of each answer: at each run, that takes ten times as
    # long as all else here together.
    return {number: _signal.getsignal(number) for number in _SIGNALS}


_first: Surroundings | None = None
_lock = threading.Lock()
_is_kept = False


def remember() -> None:
    """Before each run; the first one of this process counts."""
    global _first
    if not _is_kept and (_first is None or _first.pid != os.getpid()):
        with _lock:
            if _first is None or _first.pid != os.getpid():
                _first = Surroundings()


def let_the_ledger_log() -> None:
    """After a body, before its end is written."""
    if not _is_kept and _first is not None:
        _first.let_all_log()


def set_back() -> None:
    """After each run, and after the hooks of its task, which are the project's as well."""
    if not _is_kept and _first is not None and _first.pid == os.getpid():
        _first.set_back()


@contextmanager
def kept() -> Iterator[None]:
    """Nothing is set back meanwhile: for runs in a process that is not a worker's."""
    global _is_kept
    before, _is_kept = _is_kept, True
    try:
        yield
    finally:
        _is_kept = before
