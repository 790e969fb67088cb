"""Sends notifications, each once."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.contrib.auth import get_user_model
from django.db import transaction
from django.utils import timezone

from jobs.models import Job
from jobs.states import State
from notifications.clients.smtp import MailRefused, TransientMailError, delivered
from notifications.messages import compose, message_id
from notifications.models import EmailLog
from notifications.unsubscribe import user_id_of

User = get_user_model()


class BeingSent(TransientMailError):
    """Another job, which is running now, has claimed this e-mail."""

    def __init__(self, job_id: UUID) -> None:
        super().__init__(f"Job {job_id} is sending this e-mail at the moment.")


def notify(*, kind: str, user: Any, period: str, context: Mapping[str, Any], job_id: UUID | None = None) -> EmailLog:
    """Sends one e-mail of this kind and period to the user, once, and returns its entry in the log.

    `kind` names the templates (see `notifications.messages.compose`), `period` says which one of its kind it is (a
    date, the id of a report, or "" where there is only one ever), `job_id` is the calling job.

    The order is: claim the row (committed), send outside any transaction, mark as sent. Called again after it was sent,
    it returns the entry and sends nothing. Called again after a run that died in between, it sends again, with the same
    Message-ID and Idempotency-Key: the instant between the server's acceptance and our commit is the only window in
    which a person can get it twice (G10). Called again after a refusal, it tries again.

    Raises TransientMailError (try again later; BeingSent where another running job has the claim), MailRefused (the
    server's words are in the entry too), and RuntimeError inside a transaction.
    """
    entry = _claimed(kind=kind, user=user, period=period, job_id=job_id)
    if entry.state == EmailLog.State.SENT:
        return entry
    message = compose(
        kind=kind, user_id=user.pk, recipient=entry.recipient, message_id=entry.message_id, context=context
    )
    try:
        with delivered(message):
            entry.mark_sent()
    except MailRefused as error:
        entry.mark_failed(error=str(error))
        raise
    return entry


def unsubscribe(*, token: str) -> None:
    """Ends the digest for the user of an unsubscribe link; raises BadUnsubscribeLink. Twice is as good as once."""
    User.objects.filter(pk=user_id_of(token=token)).update(wants_digest=False)


def _claimed(*, kind: str, user: Any, period: str, job_id: UUID | None) -> EmailLog:
    fresh = EmailLog(
        kind=kind,
        user=user,
        period=period,
        recipient=user.email,
        message_id=message_id(kind=kind, user_id=user.pk, period=period),
        job_id=job_id,
    )
    # Durable: inside a caller's transaction the claim could vanish again after the mail is out.
    with transaction.atomic(durable=True):
        EmailLog.objects.bulk_create([fresh], ignore_conflicts=True)
        entry = EmailLog.objects.select_for_update().get(user=user, kind=kind, period=period)
        if entry.state == EmailLog.State.SENT:
            return entry
        if entry.job_id is not None and entry.job_id != job_id and _is_running(entry.job_id):
            raise BeingSent(entry.job_id)
        # The ledger runs a job once at a time: a claim of this job, or of one that runs no more, is a dead run's.
        entry.state, entry.error = EmailLog.State.CLAIMED, ""
        entry.recipient, entry.job_id, entry.claimed_at = user.email, job_id, timezone.now()
        entry.save(update_fields=["state", "error", "recipient", "job_id", "claimed_at"])
    return entry


def _is_running(job_id: UUID) -> bool:
    return Job.objects.filter(pk=job_id, state=State.ACTIVE).exists()
