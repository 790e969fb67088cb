"""A worker looks at itself: jobs that it owns but does not run are lost, and run again.

That happens when an end could not be written because PostgreSQL was away for too long, or when a pool process died in
a way that Celery did not notice.
"""

import logging
import time

from django.conf import settings

from jobs import settle
from jobs.models import Job
from jobs.worker import identity
from jobs.worker.requests import running_tokens

logger = logging.getLogger(__name__)


class Audit:
    """Settles active jobs of this worker that were in none of its requests for half a lease."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def run_once(self) -> None:
        """One look."""
        mine = Job.objects.filter(state="active", worker_id=identity.incarnation())
        now = time.monotonic()
        owned = list(mine.values_list("claim_token", flat=True))
        # A request is listed from before its claim until after its end: who is missing twice is not just passing by.
        missing = set(owned) - running_tokens()
        self._since = {token: self._since.get(token, now) for token in missing}
        lost = [token for token, since in self._since.items() if now - since > settings.JOBS_LEASE_SECONDS / 2]
        if lost:
            again, failed = settle.lose(
                mine.filter(claim_token__in=lost), evidence="its worker has no run of it any more"
            )
            logger.warning("Owned %d jobs without running them: %d run again, %d failed.", len(lost), again, failed)
