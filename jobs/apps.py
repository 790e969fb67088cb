"""The ledger as a Django app."""

import logging
from typing import Any

from celery.signals import after_setup_logger
from django.apps import AppConfig
from django.conf import settings

from jobs import defaults


class JobsConfig(AppConfig):
    """Job queues, the ledger of jobs, and what looks after them."""

    name = "jobs"
    verbose_name = "Jobs"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        defaults.fill_in(settings)
        from jobs import (
            canvas,
            checks,  # noqa: F401  # registers the system checks
        )
        from jobs.worker import notes

        canvas.mend()
        kept = notes.JobLogHandler()

        def keep_log_lines(logger: logging.Logger, **_: Any) -> None:
            logger.addHandler(kept)

        keep_log_lines(logging.getLogger())
        # Where the project leaves logging to Celery, a worker takes away what the root logger had.
        after_setup_logger.connect(keep_log_lines, weak=False)
