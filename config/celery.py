"""The Celery application. `celery -A config worker|beat|flower` starts from here."""

import os
import sys
from typing import Any

from celery.signals import beat_init, setup_logging, worker_init
from django.core.management.base import SystemCheckError

from jobs.app import LedgerCelery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

app = LedgerCelery("handoff")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@setup_logging.connect
def keep_djangos_logging(**_: Any) -> None:
    """Leaves `LOGGING` of the settings in force: Celery configures nothing when somebody listens to this signal."""


@worker_init.connect
@beat_init.connect
def refuse_old_servers(**_: Any) -> None:
    """A worker or beat on servers that are too old does not start."""
    from config import checks  # needs Django, which is set up by now

    try:
        checks.refuse_old_servers()
    except SystemCheckError as error:
        # Celery logs what a signal's receiver raises and goes on, unless it is this.
        sys.exit(str(error))
