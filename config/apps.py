"""The project itself as a Django app: its system checks, and the connections between the apps."""

from django.apps import AppConfig


class ConfigConfig(AppConfig):
    """Holds the checks of the environment and connects the apps' domain events and the error tracker."""

    name = "config"

    def ready(self) -> None:
        from config import checks, doctor, sentry, subscriptions  # noqa: F401  # the first two register themselves

        subscriptions.connect()
        sentry.start()
