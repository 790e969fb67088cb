"""Loaded by `--include` into a worker whose pool processes are killed again and again; no job fails because of that."""

import os
import time
from dataclasses import replace
from uuid import uuid4

from celery import shared_task
from django.contrib.auth.models import Group

from jobs.queues import QUEUES

# In the worker alone: the test imports this module too.
if "OFTEN_KILLED" in os.environ:
    QUEUES["default"] = replace(QUEUES["default"], max_stalls=1000)


@shared_task(queue="default", atomic=True)
def write_at_once(name: str) -> None:
    Group.objects.create(name=f"{name} {uuid4()}")
    time.sleep(0.01)
