"""What comes in: sources and their events. What goes out: endpoints, events, and their deliveries."""

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from jobs.ids import new_id
from webhooks.validators import validate_event_types, validate_url

URL_MAX_CHARACTERS = 2000


class Source(models.Model):
    """A system that sends us events, to `/webhooks/in/<name>`. Its secret signs them."""

    name = models.SlugField(max_length=50, help_text="The last part of the address: /webhooks/in/NAME")
    sealed_secret = models.TextField(editable=False)
    is_active = models.BooleanField(default=True, help_text="Otherwise its address is unknown")
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["name"], name="source_name_is_unique", violation_error_message="There is a source of this name."
            )
        ]

    def __str__(self) -> str:
        return self.name


class IncomingEvent(models.Model):
    """An event that a source has sent: kept as it was signed, stored together with the job that handles it."""

    class Outcome(models.TextChoices):
        """What became of it."""

        PENDING = "pending"
        HANDLED = "handled"
        IGNORED = "ignored"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    source = models.ForeignKey(Source, on_delete=models.PROTECT, related_name="events")
    event_id = models.CharField(max_length=255, help_text="The header webhook-id: the same for every repetition")
    type = models.CharField(max_length=255)
    body = models.TextField(help_text="The JSON exactly as it was signed")
    received_at = models.DateTimeField(db_default=Now())
    job_id = models.UUIDField()
    outcome = models.CharField(max_length=10, choices=Outcome.choices, default=Outcome.PENDING)
    note = models.TextField(blank=True, help_text="What handling it has led to")
    handled_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["source", "event_id"], name="incoming_event_is_unique_per_source"),
            models.CheckConstraint(
                condition=Q(handled_at__isnull=True, outcome="pending")
                | Q(handled_at__isnull=False) & ~Q(outcome="pending"),
                name="incoming_event_handled_at_iff_handled",
            ),
        ]
        indexes = [models.Index(fields=["-received_at"], name="incoming_event_by_time")]

    def __str__(self) -> str:
        return f"{self.type} {self.event_id}"

    def mark_handled(self, *, outcome: Outcome, note: str) -> None:
        """Notes that it was handled, and how."""
        self.outcome, self.note, self.handled_at = outcome, note, timezone.now()
        self.save(update_fields=["outcome", "note", "handled_at"])


class Endpoint(models.Model):
    """An address that wants to hear of events. It belongs to a user and hears of that user's events; one that belongs
    to staff may hear of everybody's."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="webhook_endpoints")
    url = models.CharField("URL", max_length=URL_MAX_CHARACTERS, validators=[validate_url])
    event_types = ArrayField(models.CharField(max_length=50), size=20, validators=[validate_event_types])
    hears_everybody = models.BooleanField(
        default=False, help_text="Events of all users, not of the owner alone; only while the owner is staff"
    )
    sealed_secret = models.TextField(editable=False)
    is_active = models.BooleanField(default=True, help_text="Otherwise nothing is sent")
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        indexes = [models.Index(fields=["owner"], name="endpoint_by_owner")]
        constraints = [
            models.CheckConstraint(condition=Q(event_types__len__gt=0), name="endpoint_has_event_types"),
        ]

    def __str__(self) -> str:
        return self.url


class OutgoingEvent(models.Model):
    """Something that happened here, as it is told to endpoints: written once, sent as it is."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    type = models.CharField(max_length=50)
    subject = models.CharField(max_length=100, help_text="What it happened to, like picture-7")
    body = models.TextField(help_text="The JSON exactly as it is signed")
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["type", "subject"], name="outgoing_event_happens_once_per_subject"),
        ]

    def __str__(self) -> str:
        return f"{self.type} of {self.subject}"

    @property
    def message_id(self) -> str:
        """The header webhook-id: the same at every attempt, so that a receiver can tell repetitions. It has no dot,
        because dots part what is signed."""
        return f"evt_{self.pk.hex}"


class Delivery(models.Model):
    """One event on its way to one endpoint."""

    class State(models.TextChoices):
        """Where it is."""

        PENDING = "pending"
        DELIVERED = "delivered"
        FAILED = "failed"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    endpoint = models.ForeignKey(Endpoint, on_delete=models.CASCADE, related_name="deliveries")
    event = models.ForeignKey(OutgoingEvent, on_delete=models.CASCADE, related_name="deliveries")
    state = models.CharField(max_length=10, choices=State.choices, default=State.PENDING)
    job_id = models.UUIDField(null=True, help_text="The job that sends it")
    created_at = models.DateTimeField(db_default=Now())
    delivered_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name_plural = "deliveries"
        constraints = [
            models.UniqueConstraint(fields=["endpoint", "event"], name="delivery_is_unique_per_endpoint_and_event"),
            models.CheckConstraint(
                condition=Q(state="delivered", delivered_at__isnull=False)
                | ~Q(state="delivered") & Q(delivered_at__isnull=True),
                name="delivery_delivered_at_iff_delivered",
            ),
        ]
        indexes = [models.Index(fields=["-created_at"], name="delivery_by_time")]

    def __str__(self) -> str:
        return f"{self.event} to {self.endpoint}"

    def mark(self, state: State) -> None:
        """Moves it to a state."""
        self.state = state
        self.delivered_at = timezone.now() if state == Delivery.State.DELIVERED else None
        self.save(update_fields=["state", "delivered_at"])


class DeliveryAttempt(models.Model):
    """One request of a delivery. Written before it is sent: one without an end belongs to a process that died."""

    delivery = models.ForeignKey(Delivery, on_delete=models.CASCADE, related_name="attempts")
    number = models.PositiveSmallIntegerField()
    job_id = models.UUIDField(null=True)
    started_at = models.DateTimeField(db_default=Now())
    finished_at = models.DateTimeField(null=True)
    status = models.PositiveSmallIntegerField(null=True, help_text="The HTTP status; empty where there was no answer")
    error = models.TextField(blank=True)
    response_excerpt = models.TextField(blank=True, help_text="The first 2 KiB of the answer")

    class Meta:
        ordering = ["number"]
        constraints = [
            models.UniqueConstraint(fields=["delivery", "number"], name="delivery_attempt_number_is_unique"),
            models.CheckConstraint(
                condition=Q(finished_at__isnull=False) | Q(status__isnull=True, error=""),
                name="delivery_attempt_outcome_only_when_finished",
            ),
        ]

    def __str__(self) -> str:
        return f"attempt {self.number}"

    def finish(self, *, status: int | None, error: str = "", response_excerpt: str = "") -> None:
        """Notes how it ended."""
        self.status, self.error, self.response_excerpt = status, error, response_excerpt
        self.finished_at = timezone.now()
        self.save(update_fields=["status", "error", "response_excerpt", "finished_at"])
