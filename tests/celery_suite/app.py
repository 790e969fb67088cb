"""The application of Celery's tests where they run on the ledger."""

from typing import Any

from jobs.app import LedgerCelery
from jobs.control import LedgerControl


class SuiteControl(LedgerControl):
    """Celery's tests purge their queue after each of them: here, what waits is cancelled."""

    def purge(self, connection: Any = None) -> int:
        """How many messages and jobs are gone."""
        from jobs import services  # models can only be imported once Django is set up
        from jobs.models import Job
        from jobs.states import State

        waiting = Job.objects.filter(state=State.WAITING).values_list("pk", flat=True)
        count = sum(services.revoke_job(job_id=job_id) for job_id in waiting)
        return count + int(super().purge(connection))


class SuiteCelery(LedgerCelery):
    """The ledger's application, with the settings of this project."""

    control_cls = "tests.celery_suite.app:SuiteControl"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, config_source="django.conf:settings", namespace="CELERY", **kwargs)
