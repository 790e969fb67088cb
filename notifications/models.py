"""What was sent to whom."""

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone


class EmailLog(models.Model):
    """One e-mail to one user: claimed before it is sent, and marked when the server has accepted it.

    G10: the unique constraint makes it one e-mail per user, kind and period, however many jobs try. A row that stays
    claimed belongs to a run that died; the next run sends again, with the same Message-ID.
    """

    class State(models.TextChoices):
        """What became of the e-mail."""

        CLAIMED = "claimed"
        SENT = "sent"
        FAILED = "failed"

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="emails")
    kind = models.CharField(max_length=32, help_text="What the e-mail is about; also the name of its templates")
    period = models.CharField(
        max_length=64, blank=True, default="", help_text="Which one of its kind; empty: the only one"
    )
    recipient = models.EmailField(max_length=254, help_text="The address at the time of sending")
    message_id = models.CharField(max_length=255, help_text="Message-ID header, the same at each attempt")
    state = models.CharField(max_length=10, choices=State.choices, default=State.CLAIMED)
    error = models.TextField(blank=True, default="", help_text="The server's words, where it refused")
    # Without a foreign key: the e-mail is remembered for longer than the job.
    job_id = models.UUIDField(null=True, blank=True, help_text="The job that claimed it last")
    created_at = models.DateTimeField(db_default=Now())
    claimed_at = models.DateTimeField(db_default=Now())
    sent_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["user", "kind", "period"], name="email_log_one_per_user_kind_period"),
            models.CheckConstraint(
                condition=Q(state="sent", sent_at__isnull=False) | (~Q(state="sent") & Q(sent_at__isnull=True)),
                name="email_log_sent_at_iff_sent",
            ),
            models.CheckConstraint(
                condition=Q(state__in=["claimed", "sent", "failed"]), name="email_log_state_is_known"
            ),
        ]
        indexes = [models.Index(fields=["-created_at"], name="email_log_created")]
        verbose_name = "e-mail"
        verbose_name_plural = "e-mails"

    def __str__(self) -> str:
        return f"{self.kind} {self.period}".strip() + f" to {self.recipient}"

    def mark_sent(self) -> None:
        """The server has accepted the message."""
        self.state, self.sent_at = self.State.SENT, timezone.now()
        self.save(update_fields=["state", "sent_at"])

    def mark_failed(self, *, error: str) -> None:
        """The server has refused the message for good."""
        self.state, self.error = self.State.FAILED, error
        self.save(update_fields=["state", "error"])
