"""The project: settings, URLs, and the Celery application that `celery -A config …` finds."""

import gc

# What a process loads now lives as long as it does, so there is no garbage to look for: that would take a fifth of the
# time of a start. `config.apps` turns the collector on again once all is loaded.
gc.disable()

from config.celery import app as celery_app  # noqa: E402

__all__ = ["celery_app"]
