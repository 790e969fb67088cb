"""Watches the source files."""

import threading
from collections.abc import Callable
from pathlib import Path

import watchfiles

from devstack.home import BASE_DIR

# Nothing that runs imports from these.
LEFT_ALONE = {"tests", "bench", "docs", "devstack"}


class SourceFilter(watchfiles.DefaultFilter):
    """Python files and templates of the project."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root

    def __call__(self, change: watchfiles.Change, path: str) -> bool:
        """Whether the processes run this file."""
        try:
            parts = Path(path).relative_to(self._root).parts
        except ValueError:
            return False
        if parts[0] in LEFT_ALONE or any(part.startswith(".") for part in parts):
            return False
        return (path.endswith(".py") or "templates" in parts) and super().__call__(change, path)


def watch(changed: Callable[[str], None], *, root: Path = BASE_DIR) -> threading.Thread:
    """Calls `changed` with the path, below `root`, of each source file that changes, from a thread of its own."""

    def run() -> None:
        for changes in watchfiles.watch(root, watch_filter=SourceFilter(root), raise_interrupt=False):
            for _, path in changes:
                changed(str(Path(path).relative_to(root)))

    thread = threading.Thread(target=run, name="reload", daemon=True)
    thread.start()
    return thread
