"""What a process of the stack is to the supervisor: how it starts, when it is ready, when and how it stops."""

import signal
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from devstack.launch import Launch


class Stage(IntEnum):
    """The order of stopping: first what takes work in, then what does it, then what both need."""

    INTAKE = 1
    WORK = 2
    # What workers talk to: the mail catcher and the stand-in for the CRM.
    MAIL = 3
    REDIS = 4
    DATABASE = 5


@dataclass(frozen=True, kw_only=True)
class Program:
    """One process of the stack, declared."""

    name: str
    launch: Callable[[], Launch]
    is_ready: Callable[[int], bool]
    stage: Stage
    where: str
    stop_signal: signal.Signals = signal.SIGTERM
    grace_seconds: float = 10
    reloads: bool = False
