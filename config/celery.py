"""The Celery application. `celery -A config worker|beat|flower` starts from here."""

import os

from jobs.app import LedgerCelery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

app = LedgerCelery("handoff")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
