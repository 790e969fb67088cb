"""The ledger as a Django app."""

import logging

from django.apps import AppConfig


class JobsConfig(AppConfig):
    """Job queues, the ledger of jobs, and what looks after them."""

    name = "jobs"
    verbose_name = "Jobs"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from jobs import (
            canvas,
            checks,  # noqa: F401  # registers the system checks
        )
        from jobs.worker import notes

        canvas.mend()
        logging.getLogger().addHandler(notes.JobLogHandler())
