"""The ledger as a Django app."""

from django.apps import AppConfig
from django.conf import settings
from django.db.backends.signals import connection_created

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
            sessions,
        )

        canvas.mend()
        connection_created.connect(sessions.watch, dispatch_uid="jobs.sessions")
