"""The daily digest: one e-mail a day to each user who wishes it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from uuid import UUID

from celery.exceptions import SoftTimeLimitExceeded

from jobs.errors import LeaseLost
from notifications import selectors
from notifications.clients.smtp import MailRefused, TransientMailError
from notifications.models import EmailLog
from notifications.selectors import Digest
from notifications.services import notify

logger = logging.getLogger(__name__)

# After so many failures one after the other the server is down, not a recipient odd: stop, and try the rest later.
FAILURES_IN_A_ROW = 5


@dataclass(kw_only=True)
class Outcome:
    """What became of the digests of a day so far."""

    total: int
    sent: int = 0
    refused: int = 0
    deferred: int = 0
    deferred_in_a_row: int = 0
    last_problem: str = ""

    @property
    def done(self) -> int:
        """Recipients that have been looked at."""
        return self.sent + self.refused + self.deferred


def send_digests(*, day: date, job_id: UUID | None, report: Callable[[int, int, str], None]) -> Outcome:
    """Mails the digest of a day to each user who wishes it, and returns how many have it.

    A recipient who fails does not stop the others: what the server refuses for good is kept in the log with its words
    and not tried again for that day; what it cannot take now is counted, and TransientMailError is raised at the end,
    so that the next run sends those alone. Called again, or after the process died, it goes on where it was.
    `report` is told the progress: done, total, message.
    """
    outcome = Outcome(total=selectors.digest_recipients().count())
    for digest in selectors.digests(day=day):
        _send(digest, day=day, job_id=job_id, outcome=outcome)
        # Users who signed up since the count must not make it more than all.
        outcome.total = max(outcome.total, outcome.done)
        report(outcome.done, outcome.total, f"{outcome.sent} of {outcome.total} sent")
        if outcome.deferred_in_a_row == FAILURES_IN_A_ROW:
            break
    else:
        # Users who left since the count are not missing.
        outcome.total = outcome.done
    if outcome.deferred:
        missing = outcome.total - outcome.sent - outcome.refused
        raise TransientMailError(f"{missing} of {outcome.total} digests could not be sent yet. {outcome.last_problem}")
    return outcome


def _send(digest: Digest, *, day: date, job_id: UUID | None, outcome: Outcome) -> None:
    if digest.state == EmailLog.State.SENT:
        outcome.sent += 1
        return
    if digest.state == EmailLog.State.FAILED:
        outcome.refused += 1
        return
    context = {
        "name": digest.user.name,
        "yesterday_date": digest.yesterday_date,
        "lines": digest.lines,
    }
    try:
        notify(kind="digest", user=digest.user, period=day.isoformat(), context=context, job_id=job_id)
    except MailRefused:
        outcome.refused += 1
    except TransientMailError as error:
        outcome.deferred += 1
        outcome.deferred_in_a_row += 1
        outcome.last_problem = str(error)
        return
    except (SoftTimeLimitExceeded, LeaseLost):
        raise
    except Exception as error:  # one odd recipient must not cost the others their mail
        logger.exception("The digest for user %s failed", digest.user.pk)
        outcome.deferred += 1
        outcome.deferred_in_a_row += 1
        outcome.last_problem = f"{type(error).__name__}: {error}"
        return
    else:
        outcome.sent += 1
    outcome.deferred_in_a_row = 0
