"""The Celery application. `celery -A config worker|beat|flower` starts from here."""

import os
from typing import Any

from celery.signals import setup_logging

from jobs.app import LedgerCelery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

app = LedgerCelery("handoff")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@setup_logging.connect
def keep_djangos_logging(**_: Any) -> None:
    """Leaves `LOGGING` of the settings in force: Celery configures nothing when somebody listens to this signal."""
