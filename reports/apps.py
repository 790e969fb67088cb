"""PDF reports: asked for, made in the background, fetched by their owner."""

from django.apps import AppConfig


class ReportsConfig(AppConfig):
    """PDF reports: asked for, made in the background, fetched by their owner."""

    name = "reports"
