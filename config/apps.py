"""The project itself as a Django app: its system checks."""

from django.apps import AppConfig


class ConfigConfig(AppConfig):
    """Holds the checks of the environment."""

    name = "config"

    def ready(self) -> None:
        from config import checks  # noqa: F401  # registers the system checks
