"""Users, who sign in with their e-mail address."""

from typing import Any

from django.contrib.auth.models import AbstractBaseUser, BaseUserManager, PermissionsMixin
from django.db import models
from django.db.models import Q
from django.db.models.functions import Lower, Now
from timezone_field import TimeZoneField

from accounts.validators import validate_ascii_mailbox, validate_no_link, validate_printable


class UserManager(BaseUserManager["User"]):
    """Creates users; addresses are stored in lower case."""

    def create_user(self, email: str, password: str | None = None, **fields: Any) -> "User":
        """A user with a hashed password. Raises IntegrityError where the address is taken."""
        user = self.model(email=self.normalize_email(email), **fields)
        user.set_password(password)
        user.save(using=self._db, force_insert=True)
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> "User":
        """A user who may do everything in the admin."""
        return self.create_user(email, password, **{**fields, "is_staff": True, "is_superuser": True})

    def get_by_natural_key(self, username: str | None) -> "User":
        """The user with this address, however it is typed."""
        return self.get(email=self.normalize_email(username))

    @classmethod
    def normalize_email(cls, email: str | None) -> str:
        """The form in which an address is stored and compared: RFC 5321 leaves the case of the part before the @ to its
        host, but no host in use tells two people apart by it."""
        return (email or "").strip().lower()


class User(AbstractBaseUser, PermissionsMixin):
    """A person with an account."""

    email = models.EmailField(max_length=254, validators=[validate_ascii_mailbox])
    name = models.CharField(max_length=150, validators=[validate_printable, validate_no_link])
    timezone = TimeZoneField(default="UTC", choices_display="WITH_GMT_OFFSET")
    wants_digest = models.BooleanField(default=True, help_text="Mail a summary once a day")
    is_active = models.BooleanField(default=True)
    is_staff = models.BooleanField(default=False, help_text="May open the admin")
    created_at = models.DateTimeField(db_default=Now())

    objects = UserManager()

    USERNAME_FIELD = "email"
    REQUIRED_FIELDS = ["name"]

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["email"],
                name="user_email_is_unique",
                violation_error_message="An account with this e-mail address exists already.",
            ),
            models.CheckConstraint(
                condition=Q(email=Lower("email")),
                name="user_email_is_lower_case",
                violation_error_message="E-mail addresses are kept in lower case.",
            ),
        ]

    def __str__(self) -> str:
        return self.email

    def clean(self) -> None:
        """Brings the address into the form in which it is stored."""
        self.email = User.objects.normalize_email(self.email)


class ApiToken(models.Model):
    """A bearer token for the API. Only its SHA-256 is kept, so that a copy of the table opens nothing.

    A fast hash is right here: a token has 256 random bits, so there is nothing to guess, unlike a password (OWASP
    Authentication Cheat Sheet; NIST SP 800-63B, section 5.1.2, asks for slow hashing below 112 bits only).
    """

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="api_tokens")
    digest = models.CharField(max_length=64, help_text="SHA-256 of the token, in hexadecimal")
    created_at = models.DateTimeField(db_default=Now())
    last_used_at = models.DateTimeField(null=True, blank=True, help_text="To within an hour")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["digest"], name="api_token_digest_is_unique"),
            models.CheckConstraint(condition=Q(digest__regex=r"^[0-9a-f]{64}$"), name="api_token_digest_is_sha256"),
        ]

    def __str__(self) -> str:
        return f"token {self.pk} of user {self.user_id}"
