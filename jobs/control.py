"""Celery's remote control, where it would work against the ledger."""

from typing import Any

from celery.app.control import Control
from celery.utils.functional import maybe_list


class LedgerControl(Control):
    """`AsyncResult.revoke()` cancels the job's row.

    Celery's own revocation is a list of ids in the workers' memory: it is forgotten after a restart, and for hours it
    would discard every run of a job that an operator wants to run again.
    """

    def revoke(self, task_id: Any, *args: Any, **options: Any) -> Any:
        """Cancels jobs that have not ended; what is no job of the ledger is left to Celery."""
        from jobs import services  # models can only be imported once Django is set up
        from jobs.ids import InvalidJobId, parse_id

        foreign = []
        for name in maybe_list(task_id) or []:
            try:
                known = services.revoke_job(job_id=parse_id(name))
            except InvalidJobId:
                known = False
            if not known:
                foreign.append(name)
        return super().revoke(foreign, *args, **options) if foreign else None
