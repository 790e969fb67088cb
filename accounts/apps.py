"""Users, sign-up and access."""

from django.apps import AppConfig


class AccountsConfig(AppConfig):
    """Users, sign-up and access."""

    name = "accounts"
