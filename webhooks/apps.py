"""Webhooks: signed events from other systems, and signed events to them."""

from django.apps import AppConfig


class WebhooksConfig(AppConfig):
    """Webhooks, in and out, signed as Standard Webhooks says."""

    name = "webhooks"
