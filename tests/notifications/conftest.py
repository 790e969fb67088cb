"""Fixtures of the notification tests."""

from typing import Any

import pytest

from accounts.models import User


@pytest.fixture(autouse=True)
def real_smtp(settings: Any) -> None:
    """Django's test setup puts mails into a list; here they go to a server, and soon."""
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_TIMEOUT = 5


@pytest.fixture
def user(db: None) -> User:
    """Somebody to write to."""
    return User.objects.create(email="ann@example.com", name="Ann")
