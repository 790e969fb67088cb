"""E-mail, and later SMS and push."""

from django.apps import AppConfig


class NotificationsConfig(AppConfig):
    """E-mail, and later SMS and push."""

    name = "notifications"
