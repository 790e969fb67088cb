"""Users, who sign in with their e-mail address."""

from typing import Any

from django.contrib.auth.models import AbstractBaseUser, BaseUserManager, PermissionsMixin
from django.db import models
from django.db.models import Q
from django.db.models.functions import Lower, Now
from timezone_field import TimeZoneField


class UserManager(BaseUserManager["User"]):
    """Creates users; addresses are stored in lower case."""

    def create_user(self, email: str, password: str | None = None, **fields: Any) -> "User":
        """A user with a hashed password. Raises IntegrityError where the address is taken."""
        user = self.model(email=email.strip().lower(), **fields)
        user.set_password(password)
        user.save(using=self._db, force_insert=True)
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> "User":
        """A user who may do everything in the admin."""
        return self.create_user(email, password, **{**fields, "is_staff": True, "is_superuser": True})

    def get_by_natural_key(self, username: str | None) -> "User":
        """The user with this address, however it is typed."""
        return self.get(email=(username or "").strip().lower())


class User(AbstractBaseUser, PermissionsMixin):
    """A person with an account."""

    email = models.EmailField(max_length=254, unique=True)
    name = models.CharField(max_length=150)
    timezone = TimeZoneField(default="UTC", choices_display="WITH_GMT_OFFSET")
    wants_digest = models.BooleanField(default=True, help_text="Mail a summary once a day")
    is_active = models.BooleanField(default=True)
    is_staff = models.BooleanField(default=False, help_text="May open the admin")
    created_at = models.DateTimeField(db_default=Now())

    objects = UserManager()

    USERNAME_FIELD = "email"
    REQUIRED_FIELDS = ["name"]

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(email=Lower("email")), name="user_email_is_lower_case")]

    def __str__(self) -> str:
        return self.email
