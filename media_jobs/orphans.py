"""Files that belong to no upload: of users who were deleted, and of processes that died in the middle of an upload."""

import logging
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

from django.core.files.storage import default_storage
from django.db import router
from django.utils import timezone

from jobs import commits
from media_jobs.models import Picture, Upload, Video

logger = logging.getLogger(__name__)

Report = Callable[[float, float, str], None]
FOLDERS: dict[str, type[Upload]] = {"pictures": Picture, "videos": Video}
# The file comes before its row: what is younger may belong to an upload that is still under way.
ORPHAN_AFTER = timedelta(days=1)
CHUNK_COUNT = 500


def remove(*, report: Report) -> int:
    """Removes the folders without an upload whose files are older than a day; returns how many.

    Called twice it finds nothing more; when it dies in the middle, the next call does the rest. OSError where the
    storage is away.
    """
    removed_count = 0
    for step, (folder, model) in enumerate(FOLDERS.items()):
        keys = _keys(folder)
        for start in range(0, len(keys), CHUNK_COUNT):
            chunk = keys[start : start + CHUNK_COUNT]
            report(step + start / len(keys), len(FOLDERS), f"Looking at {folder}")
            known = set(model._default_manager.filter(key__in=chunk).values_list("key", flat=True))
            removed_count += sum(_remove_if_old(f"{folder}/{key}") for key in chunk if key not in known)
    if removed_count:
        logger.info("%s folders of files without an upload were removed.", removed_count)
    return removed_count


def remove_files(sender: Any, *, instance: Upload, **_: Any) -> None:
    """Removes the files of an upload that is deleted, as when its owner is, once that is committed."""
    folder = next(name for name, model in FOLDERS.items() if isinstance(instance, model))
    # What is not removed now, `remove` finds.
    commits.then(partial(_remove_folder, f"{folder}/{instance.key}"), using=router.db_for_write(sender))


def _keys(folder: str) -> list[str]:
    try:
        return default_storage.listdir(folder)[0]
    except FileNotFoundError:
        return []


def _remove_if_old(folder: str) -> bool:
    youngest_at = timezone.now() - ORPHAN_AFTER
    names = default_storage.listdir(folder)[1]
    if any(default_storage.get_modified_time(f"{folder}/{name}") > youngest_at for name in names):
        return False
    _remove_folder(folder)
    return True


def _remove_folder(folder: str) -> None:
    try:
        names = default_storage.listdir(folder)[1]
    except FileNotFoundError:
        return
    for name in names:
        default_storage.delete(f"{folder}/{name}")
    # A folder of the local disk; object stores have none.
    default_storage.delete(folder)
