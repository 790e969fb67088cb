"""The project: settings, URLs, and the Celery application that `celery -A config …` finds."""

import gc

# What a process loads now lives as long as it does, so there is next to no garbage: to look for it would take a fifth
# of the time of a start. `config.apps` sets the collector back once all is loaded. In a process that never comes to
# that, as `celery events`, it looks seldom.
GC_THRESHOLDS = gc.get_threshold()
gc.set_threshold(100_000, *GC_THRESHOLDS[1:])

from config.celery import app as celery_app  # noqa: E402

__all__ = ["GC_THRESHOLDS", "celery_app"]
