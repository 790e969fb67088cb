"""Two people and an empty store of files."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.conf import settings
from django.test import Client

from accounts.models import User


@pytest.fixture(autouse=True)
def _no_files() -> Iterator[None]:
    """What an earlier test stored is gone."""
    shutil.rmtree(settings.MEDIA_ROOT, ignore_errors=True)
    yield
    shutil.rmtree(settings.MEDIA_ROOT, ignore_errors=True)


@pytest.fixture
def stored() -> Callable[[], list[str]]:
    """Lists the stored files, without the random folders that they are in."""

    def names() -> list[str]:
        root = Path(settings.MEDIA_ROOT)
        found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
        return sorted(f"{path.parts[0]}/{path.name}" for path in found)

    return names


@pytest.fixture
def ann(transactional_db: None) -> User:
    return User.objects.create_user("ann@example.com", name="Ann")


@pytest.fixture
def bob(transactional_db: None) -> User:
    return User.objects.create_user("bob@example.com", name="Bob")


@pytest.fixture
def client_of() -> Callable[[User], Client]:
    """A browser that is signed in."""

    def signed_in(user: User) -> Client:
        client = Client()
        client.force_login(user)
        return client

    return signed_in
