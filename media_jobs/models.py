"""Pictures and videos, and what was made of them."""

from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone


class Upload(models.Model):
    """What pictures and videos have in common: an original, and a job that makes something of it.

    `key` is random and names the folder of the files: nobody guesses one, even where a bucket is public by mistake.
    """

    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="%(class)ss")
    key = models.CharField(max_length=32, help_text="Random; the folder of its files")
    original = models.FileField(max_length=200)
    byte_count = models.PositiveBigIntegerField(help_text="Of the original")
    format = models.CharField(max_length=16, help_text="By its content, whatever its name was")
    # Without a foreign key: the file is remembered for longer than the job.
    job_id = models.UUIDField(null=True, blank=True, help_text="The job that works on it")
    width_pixels = models.PositiveIntegerField(null=True, blank=True, help_text="As people see it")
    height_pixels = models.PositiveIntegerField(null=True, blank=True, help_text="As people see it")
    error = models.TextField(blank=True, default="", help_text="Why nothing could be made of it")
    created_at = models.DateTimeField(db_default=Now())
    ready_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        abstract = True

    def mark_refused(self, *, error: str) -> None:
        """Nothing can be made of it. A run that has come too late changes nothing."""
        type(self)._default_manager.filter(pk=self.pk, ready_at=None).update(error=error)

    def mark_ready(self, **facts: Any) -> None:
        """Everything was made of it; `facts` are what was found out on the way."""
        self.error, self.ready_at = "", timezone.now()
        for name, value in facts.items():
            setattr(self, name, value)
        self.save(update_fields=["error", "ready_at", *facts])


class Picture(Upload):
    """A picture that somebody uploaded."""

    class Purpose(models.TextChoices):
        """What it is for."""

        AVATAR = "avatar"
        PICTURE = "picture"

    kind = "picture"
    purpose = models.CharField(max_length=10, choices=Purpose.choices, default=Purpose.PICTURE)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["key"], name="picture_key_is_unique"),
            models.CheckConstraint(condition=Q(purpose__in=["avatar", "picture"]), name="picture_purpose_is_known"),
            models.CheckConstraint(
                condition=Q(ready_at=None) | Q(width_pixels__isnull=False, height_pixels__isnull=False, error=""),
                name="picture_ready_is_measured_and_without_error",
            ),
        ]
        indexes = [models.Index(fields=["-created_at"], name="picture_created")]

    def __str__(self) -> str:
        return f"{self.purpose} {self.pk}"


class Rendition(models.Model):
    """A square of a picture. Its row appears together with the others of its picture, after the files."""

    picture = models.ForeignKey(Picture, on_delete=models.CASCADE, related_name="renditions")
    size_pixels = models.PositiveSmallIntegerField(help_text="Width and height")
    file = models.FileField(max_length=200)
    byte_count = models.PositiveIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["picture", "size_pixels"], name="rendition_one_per_picture_and_size"),
        ]
        ordering = ["size_pixels"]

    def __str__(self) -> str:
        return f"{self.size_pixels} × {self.size_pixels} of picture {self.picture_id}"


class Video(Upload):
    """A video that somebody uploaded."""

    kind = "video"
    duration_seconds = models.FloatField(null=True, blank=True)
    poster = models.FileField(max_length=200, blank=True, default="")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["key"], name="video_key_is_unique"),
            models.CheckConstraint(
                condition=Q(ready_at=None)
                | (
                    Q(width_pixels__isnull=False, height_pixels__isnull=False, duration_seconds__isnull=False, error="")
                    & ~Q(poster="")
                ),
                name="video_ready_is_measured_and_has_a_poster",
            ),
        ]
        indexes = [models.Index(fields=["-created_at"], name="video_created")]

    def __str__(self) -> str:
        return f"video {self.pk}"
