"""A worker looks at itself: jobs that it owns but does not run are lost, and run again.

That happens when an end could not be written because PostgreSQL was away for too long, or when a pool process died in
a way that Celery did not notice. What a worker has claimed it knows, so it asks for those rows by their ids: a look
costs the same however many jobs have run, and however long somebody's snapshot keeps them.
"""

import logging
import time
from uuid import UUID

from django.conf import settings

from jobs import settle
from jobs.models import Job
from jobs.worker import identity
from jobs.worker.requests import claimed, running_tokens

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 200


class Audit:
    """Settles active jobs of this worker that were in none of its requests for half a lease."""

    def __init__(self) -> None:
        # Claims that this worker does not run any more, and since when.
        self._since: dict[str, float] = {}

    def wait(self) -> None:
        """PostgreSQL is back after an outage: runs that wait to write their ends get the time for it."""
        self._since.clear()

    def run_once(self) -> None:
        """One look: at what has been over for half a lease, the longest first, until its row says so too."""
        now = time.monotonic()
        mine = dict(claimed)
        over = mine.keys() - running_tokens()
        # What runs after all was just passing from the claim to a request.
        self._since = {token: since for token, since in self._since.items() if token in over}
        for token in over:
            self._since.setdefault(token, now)
        ripe = [token for token, since in self._since.items() if now - since > settings.JOBS_LEASE_SECONDS / 2]
        # Where many jobs end, more of them are asked for at once.
        for part in _parts(ripe[: max(_ROWS_AT_ONCE, len(ripe) // 4)]):
            kept = self._settle({mine[token]: token for token in part})
            for token in set(part) - kept:
                claimed.pop(token, None)
                self._since.pop(token, None)

    def _settle(self, tokens: dict[UUID, str]) -> set[str]:
        """Returns the tokens of those that are locked by somebody at this moment, and not settled."""
        # By their ids alone: asked for the state, PostgreSQL might read all that is active, or was.
        rows = Job.objects.filter(pk__in=tokens).values_list("pk", "state", "claim_token")
        lost = [pk for pk, state, token in rows if state == "active" and token == tokens[pk]]
        if lost:
            jobs = Job.objects.filter(pk__in=lost, worker_id=identity.incarnation(), claim_token__in=tokens.values())
            again, failed = settle.lose(jobs, evidence="its worker has no run of it any more")
            logger.warning("Owned %d jobs without running them: %d run again, %d failed.", len(lost), again, failed)
            left = Job.objects.filter(pk__in=lost).values_list("pk", "state", "claim_token")
            return {token for pk, state, token in left if state == "active" and token == tokens[pk]}
        return set()


def _parts(tokens: list[str]) -> list[list[str]]:
    return [tokens[start : start + _ROWS_AT_ONCE] for start in range(0, len(tokens), _ROWS_AT_ONCE)]
