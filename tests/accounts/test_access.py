from datetime import timedelta
from hashlib import sha256
from typing import Any

import pytest
from django.db import IntegrityError
from django.test import Client
from django.utils import timezone

from accounts import services
from accounts.models import ApiToken, User

PASSWORD = "correct horse battery"


@pytest.fixture
def user(db: None) -> User:
    return User.objects.create_user(email="ann@example.com", name="Ann", password=PASSWORD)


def post(client: Client, path: str, **body: Any) -> Any:
    return client.post(path, data=body, content_type="application/json")


def test_a_login_starts_a_session(client: Client, user: User) -> None:
    response = post(client, "/login", email="Ann@example.com", password=PASSWORD)
    assert response.status_code == 200
    assert response.json() == {"id": user.pk}
    assert client.session["_auth_user_id"] == str(user.pk)


@pytest.mark.parametrize("path", ["/login", "/api/tokens"])
@pytest.mark.parametrize(
    ("email", "password"),
    [("ann@example.com", "wrong"), ("bob@example.com", PASSWORD), ("", ""), ("no address", PASSWORD)],
)
def test_wrong_credentials_are_401_in_the_same_words(
    client: Client, user: User, path: str, email: str, password: str
) -> None:
    response = post(client, path, email=email, password=password)
    assert response.status_code == 401
    assert response.json()["error"]["message"] == "The e-mail address or the password is wrong."
    assert "_auth_user_id" not in client.session


@pytest.mark.parametrize("path", ["/login", "/api/tokens"])
def test_somebody_who_was_locked_out_is_401(client: Client, user: User, path: str) -> None:
    User.objects.update(is_active=False)
    assert post(client, path, email=user.email, password=PASSWORD).status_code == 401


@pytest.mark.parametrize("path", ["/login", "/api/tokens"])
@pytest.mark.parametrize(
    "body", [{}, {"email": "a\0@example.com", "password": "x"}, {"email": "a@b.de", "password": "x" * 257}]
)
def test_bad_fields_are_422(client: Client, user: User, path: str, body: dict[str, str]) -> None:
    response = post(client, path, **body)
    assert response.status_code == 422
    assert response.json()["error"]["fields"]


def test_a_form_of_another_site_cannot_log_anybody_in(user: User) -> None:
    client = Client(enforce_csrf_checks=True)
    body = '{"email": "ann@example.com", "password": "correct horse battery"}'
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert client.post("/login", data=body, content_type=content_type).status_code == 415
    assert "_auth_user_id" not in client.session


def test_a_token_is_shown_once_and_stored_as_its_hash_alone(client: Client, user: User) -> None:
    response = post(client, "/api/tokens", email=user.email, password=PASSWORD)
    assert response.status_code == 201
    token = response.json()["token"]
    stored = ApiToken.objects.get()
    assert stored.user == user
    assert stored.digest == sha256(token.encode()).hexdigest()
    assert token not in str([list(row) for row in ApiToken.objects.values_list()])


def test_a_token_opens_the_api_for_its_user_until_the_user_is_locked_out(user: User) -> None:
    token = services.create_token(user=user)
    assert services.user_of_token(token=token) == user
    User.objects.update(is_active=False)
    assert services.user_of_token(token=token) is None


def test_no_two_tokens_are_the_same_and_each_has_256_random_bits(user: User) -> None:
    tokens = {services.create_token(user=user) for _ in range(20)}
    assert len(tokens) == 20
    assert all(len(token.removeprefix("handoff_")) == 43 for token in tokens)


def test_the_use_of_a_token_is_noted_once_an_hour(user: User) -> None:
    token = services.create_token(user=user)
    services.user_of_token(token=token)
    first = ApiToken.objects.get().last_used_at
    assert first is not None
    services.user_of_token(token=token)
    assert ApiToken.objects.get().last_used_at == first
    ApiToken.objects.update(last_used_at=timezone.now() - timedelta(hours=2))
    services.user_of_token(token=token)
    again = ApiToken.objects.get().last_used_at
    assert again is not None
    assert again >= first


def test_a_token_is_never_stored_in_clear(user: User) -> None:
    with pytest.raises(IntegrityError, match="api_token_digest_is_sha256"):
        ApiToken.objects.create(user=user, digest="handoff_in_clear")


def test_an_address_is_never_stored_in_upper_case(user: User) -> None:
    with pytest.raises(IntegrityError, match="user_email_is_lower_case"):
        User.objects.create(email="BOB@example.com", name="Bob")


def test_an_address_is_never_stored_twice(user: User) -> None:
    with pytest.raises(IntegrityError, match="user_email_is_unique"):
        User.objects.create(email=user.email, name="Ann")
