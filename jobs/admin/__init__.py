"""The operators' pages of the ledger. Importing them registers them, in Django's autodiscovery."""

from jobs.admin import jobs, periodic_tasks, workers

__all__ = ["jobs", "periodic_tasks", "workers"]
