"""What a person sees: lines, tables, and the ends of log files."""

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path


def say(text: str = "") -> None:
    """One line on standard output, at once."""
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except OSError:
        # Nobody reads any more (a closed terminal, `| head`): what is under way, like stopping, goes on all the same.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(text: str) -> None:
    """One line on standard error."""
    sys.stdout.flush()
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def table(rows: Iterable[Sequence[str]]) -> str:
    """Rows in columns, as wide as their widest cell; the last column may be as long as it likes."""
    rows = [list(row) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths[:-1], strict=True)]
        lines.append("  " + "  ".join([*cells, row[-1]]).rstrip())
    return "\n".join(lines)


def last_lines(path: Path, count: int = 15) -> str:
    """The end of a log file, indented; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 32 * 1024))
            lines = file.read().decode(errors="replace").splitlines()[-count:]
    except FileNotFoundError:
        return ""
    return "\n".join(f"    {line}" for line in lines)


class Follower:
    """Copies what is appended to log files to the terminal, each line with the name of its process."""

    def __init__(self, logs: dict[str, Path]) -> None:
        self._logs = logs
        self._width = max(map(len, logs), default=0)
        self._offsets = {name: path.stat().st_size if path.exists() else 0 for name, path in logs.items()}

    def copy(self) -> None:
        """Copies the whole lines that are new since the last call."""
        for name, path in self._logs.items():
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                continue
            if size < self._offsets[name]:
                self._offsets[name] = 0
            if size == self._offsets[name]:
                continue
            with path.open("rb") as file:
                file.seek(self._offsets[name])
                text = file.read(size - self._offsets[name])
            whole = text[: text.rfind(b"\n") + 1]
            self._offsets[name] += len(whole)
            for line in whole.decode(errors="replace").splitlines():
                say(f"{name.ljust(self._width)} | {line}")
