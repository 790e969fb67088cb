"""The ledger: jobs as rows of PostgreSQL, run by Celery's workers."""

from jobs.fencing import fenced

__all__ = ["fenced"]
