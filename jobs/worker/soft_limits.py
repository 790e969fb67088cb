"""Soft time limits strike in the body that they belong to, and nowhere else.

The pool tells a process by a signal, whose handler raises wherever the process is at this moment. Where the end of the
job is being written, the end would be lost; between two jobs, the process would end.
"""

import signal
from typing import Any

from billiard.pool import SIG_SOFT_TIMEOUT, soft_timeout_sighandler
from celery import current_app

_is_guarded = False


def guard() -> None:
    """Takes the place of the pool's handler in this process. Only pool processes have that one: threads have no soft
    limits.

    Called at the beginning of each run, because the pool sets its handler after everything else; the first one does it.
    """
    global _is_guarded
    if _is_guarded:
        return
    _is_guarded = True
    if SIG_SOFT_TIMEOUT is not None and signal.getsignal(SIG_SOFT_TIMEOUT) is soft_timeout_sighandler:
        signal.signal(SIG_SOFT_TIMEOUT, _strike)


def _strike(number: int, frame: Any) -> None:
    task = current_app.current_worker_task
    if task is not None and not getattr(task.request, "has_left_body", False):
        soft_timeout_sighandler(number, frame)
