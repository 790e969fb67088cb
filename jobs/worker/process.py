"""Which processes of this host live: for a worker whose process is gone, nobody need wait until its lease has ended.

Linux tells all that is needed, through `/proc`. Elsewhere nothing is said to be known, and leases alone decide.
"""

import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")
_ENDED = ("Z", "X")


class _Stat(NamedTuple):
    state: str
    started_ticks: int


@cache
def pid_space() -> str:
    """Where the pid of this process means something: the boot of this machine and the PID namespace; empty: unknown.

    While this process lives, no other namespace of this boot has the number of its own: whoever was noted with both of
    them is here, or is gone.
    """
    try:
        if str((_PROC / "self").readlink()) != str(os.getpid()):
            # Mounted for another namespace than ours.
            return ""
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{(_PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return ""


def started_ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since the boot, which tells it from a later one of the same pid."""
    stat = _stat(pid)
    return stat.started_ticks if stat else None


def is_gone(pid: int, ticks: int | None) -> bool:
    """Whether the process that had this pid and began then has surely ended; a frozen one has not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        # Another user's, but there. Its `/proc` entry may be hidden from us, so that says nothing by its absence.
        pass
    stat = _stat(pid)
    return stat is not None and (stat.state in _ENDED or (ticks is not None and stat.started_ticks != ticks))


def _stat(pid: int) -> _Stat | None:
    # proc_pid_stat(5). The name of the program, in parentheses, may itself hold spaces and parentheses.
    try:
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        return _Stat(state=fields[0], started_ticks=int(fields[19]))
    except (OSError, IndexError, ValueError):
        return None
