"""The project itself as a Django app: its system checks, and the connections between the apps."""

import gc

from django.apps import AppConfig


class ConfigConfig(AppConfig):
    """Holds the checks of the environment and connects the apps' domain events and the error tracker."""

    name = "config"

    def ready(self) -> None:
        from config import checks, doctor, sentry, subscriptions  # noqa: F401  # the first two register themselves

        subscriptions.connect()
        sentry.start()
        # The collector, off since `config/__init__.py`, passes over what is there by now, also when the process ends;
        # and pool processes go on sharing that memory with their worker.
        gc.freeze()
        gc.enable()
