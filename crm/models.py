"""What we know about our contacts at the CRM."""

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone


class CrmContact(models.Model):
    """A user's contact at the CRM."""

    class State(models.TextChoices):
        """Whether the CRM has what we have."""

        PENDING = "pending"
        SYNCED = "synced"
        FAILED = "failed"

    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="crm_contact")
    state = models.CharField(max_length=10, choices=State.choices, default=State.PENDING)
    remote_id = models.CharField(max_length=64, blank=True, help_text="The contact's id at the CRM")
    error = models.TextField(blank=True, help_text="What the last call led to, where it did not succeed")
    job_id = models.UUIDField(null=True, blank=True, help_text="The job that syncs it")
    created_at = models.DateTimeField(db_default=Now())
    synced_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = "CRM contact"
        constraints = [
            models.CheckConstraint(
                condition=~Q(state="synced") | Q(synced_at__isnull=False) & ~Q(remote_id="") & Q(error=""),
                name="crm_contact_synced_has_id_and_time",
            ),
        ]
        indexes = [models.Index(fields=["-created_at"], name="crm_contact_by_time")]

    def __str__(self) -> str:
        return f"contact of user {self.user_id}"

    def mark_synced(self, *, remote_id: str) -> None:
        """The CRM has what we have. Once more for a contact that is synced already changes nothing."""
        if self.state != self.State.SYNCED:
            self.synced_at = timezone.now()
        self.state, self.remote_id, self.error = self.State.SYNCED, remote_id, ""
        self.save(update_fields=["state", "remote_id", "error", "synced_at"])

    def mark_unsynced(self, *, error: str, is_final: bool) -> None:
        """The last call did not succeed."""
        self.state, self.error = self.State.FAILED if is_final else self.State.PENDING, error
        self.save(update_fields=["state", "error"])
