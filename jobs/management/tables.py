"""Tables on a terminal: columns as wide as they need, lines no longer than the terminal."""

import shutil
import sys
from collections.abc import Sequence
from datetime import timedelta

from django.core.management.base import OutputWrapper


def table(head: Sequence[str], rows: Sequence[Sequence[object]], stdout: OutputWrapper) -> str:
    """Head and rows in columns. What goes to a terminal is cut at its width; what goes elsewhere never is."""
    lines = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    if stdout.isatty():
        columns = shutil.get_terminal_size().columns
        text = [line if len(line) <= columns else f"{line[: columns - 1]}…" for line in text]
    return "\n".join(text)


def length(seconds: float | timedelta | None) -> str:
    """A length of time in at most six characters: 0.34s, 12.1s, 5m03s, 2h07m, 3d04h."""
    if seconds is None:
        return "–"
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    if seconds < 10:
        return f"{seconds:.2f}s"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours < 24 else f"{hours // 24}d{hours % 24:02}h"


def is_interactive() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()
