"""Loaded into a worker by `--include`: Celery's signals about a task are lines of JSON in the file SIGNALS_FILE."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from celery import signals

NAMES = ("task_prerun", "task_success", "task_failure", "task_retry", "task_postrun")


def _record(name: str, sender: Any, task_id: str | None = None, **_: Any) -> None:
    line = json.dumps({"signal": name, "task": sender.name, "id": sender.request.id, "told_id": task_id})
    with Path(os.environ["SIGNALS_FILE"]).open("a") as file:
        file.write(f"{line}\n")


if "SIGNALS_FILE" in os.environ:
    for _name in NAMES:
        getattr(signals, _name).connect(partial(_record, _name), weak=False)
