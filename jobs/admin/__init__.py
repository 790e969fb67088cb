"""The operators' pages of the ledger. Importing them registers them, in Django's autodiscovery."""

from jobs.admin import audit, jobs, periodic_tasks, queue_limits, workers

__all__ = ["audit", "jobs", "periodic_tasks", "queue_limits", "workers"]
