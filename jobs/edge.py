"""The edge between the ledger and what users write inside a task.

Whatever a body raises ends its run as what it is, and whatever it leaves behind in its process or on its connections is
gone before the end of the run is written. No subclass of a task hides that: what users write in `__call__` and in
`before_start` runs inside.
"""

import signal
import threading
from collections.abc import Callable
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from billiard.common import terminate_handler_fired
from celery.exceptions import WorkerShutdown, WorkerTerminate

from jobs import runs

if TYPE_CHECKING:
    from jobs.task import JobTask

# How far a run has come: its body was entered, and its function is being called.
_ENTERED, _CALLED = "entered", "called"


def keep_outermost(cls: type["JobTask"]) -> None:
    """Puts the ledger's work around what a class does in `__call__` and in `before_start`."""
    for name, put_around in (("__call__", _around_call), ("before_start", _around_before_start)):
        found: Any = getattr(cls, name)
        if not hasattr(found, "is_inside"):
            outermost: Any = put_around(found)
            outermost.is_inside = True
            setattr(cls, name, outermost)


def _around_call(inner: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(inner)
    def outermost(self: "JobTask", *args: Any, **kwargs: Any) -> Any:
        request = self.request
        if request.called_directly or request.is_eager or request.get("stage"):
            return inner(self, *args, **kwargs)
        return self.run_claimed(partial(inner, self, *args, **kwargs))

    return outermost


def _around_before_start(inner: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(inner)
    def before_start(self: "JobTask", task_id: str, args: list[Any], kwargs: dict[str, Any]) -> None:
        request = self.request
        if not request.is_eager and getattr(request, "claim", None) is None:
            runs.begin(self, request, args, kwargs)
        _with_failures(partial(inner, self, task_id, args, kwargs))

    return before_start


def enter(request: Any, body: Callable[[], Any]) -> Any:
    """Runs a body, with what users have put around it."""
    request.stage = _ENTERED
    try:
        return _with_failures(body)
    finally:
        # From here on it is out of reach of its soft time limit, and of an alarm that it has set.
        request.has_left_body = True
        request.stage = None
        if threading.current_thread() is threading.main_thread():
            signal.setitimer(signal.ITIMER_REAL, 0)


def call(request: Any, function: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
    """Calls the function of a task for its run; `otherwise` where it is the body that calls its task once more."""
    if request.get("stage") != _ENTERED:
        return otherwise()
    request.stage = _CALLED
    try:
        return function()
    finally:
        request.stage = _ENTERED


def _with_failures(body: Callable[[], Any]) -> Any:
    """What passes every `except Exception`, such as SystemExit, would end a process, or a thread without a word: here
    it is this job's failure. Not so where the process itself was told to end meanwhile."""
    try:
        return body()
    except (Exception, WorkerShutdown, WorkerTerminate):
        raise
    except BaseException as error:
        if terminate_handler_fired():
            raise
        raise RuntimeError(f"{type(error).__name__}: {error}".removesuffix(": ")) from error
