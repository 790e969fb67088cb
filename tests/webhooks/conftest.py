"""Fixtures of the webhook tests."""

import pytest

from accounts.models import User


@pytest.fixture
def user(db: None) -> User:
    """Somebody with endpoints."""
    return User.objects.create(email="ann@example.com", name="Ann")
