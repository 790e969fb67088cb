"""Who hears of which domain event. Apps beside each other do not know one another; this is where they are connected."""

from accounts.signals import user_created
from notifications import receivers


def connect() -> None:
    """Connects every receiver. Called once, when all apps are loaded; a second call changes nothing."""
    user_created.connect(receivers.welcome, dispatch_uid="notifications.welcome")
