"""The operators' pages of the ledger. Importing them registers them, in Django's autodiscovery."""

from jobs.admin import jobs, periodic_tasks, queue_limits, workers

__all__ = ["jobs", "periodic_tasks", "queue_limits", "workers"]
