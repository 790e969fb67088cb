"""The project itself as a Django app: its system checks, and the connections between the apps."""

import gc

from django.apps import AppConfig
from django.conf import settings

from config import GC_THRESHOLDS


class ConfigConfig(AppConfig):
    """Holds the checks of the environment and connects the apps' domain events and the error tracker."""

    name = "config"

    def ready(self) -> None:
        from config import checks, doctor, subscriptions  # noqa: F401  # the first two register themselves

        subscriptions.connect()
        if settings.SENTRY_DSN:
            from config import sentry  # takes its time to load

            sentry.start()
        # From here on the collector looks as often as ever. It passes over what is there by now, also when the process
        # ends; and pool processes go on sharing that memory with their worker.
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
