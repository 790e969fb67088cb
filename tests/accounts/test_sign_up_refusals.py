import json
from typing import Any

import pytest
from django.db import OperationalError
from django.test import Client

from accounts import services
from accounts.models import User
from config.bodies import SMALL_JSON
from jobs.models import Job

ANN = {"email": "ann@example.com", "name": "Ann", "password": "correct horse battery"}


def send(client: Client, body: bytes | str, **options: Any) -> Any:
    return client.post("/signup", data=body, **{"content_type": "application/json", **options})


def assert_refused(response: Any, status: int) -> dict[str, str]:
    assert response.status_code == status
    assert response["Content-Type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "fields"}
    assert error["message"]
    assert "Traceback" not in response.content.decode()
    assert not User.objects.exists()
    assert not Job.objects.exists()
    fields: dict[str, str] = error["fields"]
    return fields


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("email", "no address"),
        ("email", ""),
        ("email", None),
        ("email", 5),
        ("email", ["ann@example.com"]),
        ("email", "a" * 300 + "@example.com"),
        ("email", "an\0n@example.com"),
        ("email", "ann@example.com\nBcc: bob@example.com"),
        ("email", "a\u017fk@example.com"),
        ("name", ""),
        ("name", "   "),
        ("name", None),
        ("name", {"first": "Ann"}),
        ("name", "x" * 151),
        ("name", "An\0n"),
        ("name", "Ann\r\nBcc: bob@example.com"),
        ("name", "Win money at https://example.com"),
        ("password", "short"),
        ("password", "password123"),
        ("password", "4815162342108"),
        ("password", "ann@example.com"),
        ("password", "x" * 257),
        ("password", "correct horse\0battery"),
        ("password", 1234567890123),
        ("password", None),
    ],
)
def test_a_bad_value_is_422_with_a_message_for_its_field_alone(client: Client, field: str, value: Any) -> None:
    fields = assert_refused(send(client, json.dumps({**ANN, field: value})), 422)
    assert list(fields) == [field]
    assert fields[field].endswith(".")


@pytest.mark.django_db
def test_every_wrong_field_is_named_at_once(client: Client) -> None:
    body = json.dumps({"email": "x", "name": "x" * 151, "password": "short"})
    assert set(assert_refused(send(client, body), 422)) == {"email", "name", "password"}
    assert set(assert_refused(send(client, "{}"), 422)) == {"email", "name", "password"}


@pytest.mark.django_db
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"email=ann",
        b"\xff\xfe\xfd",
        b'{"email": "\xe9"}',
        b"[]",
        b"5",
        b"null",
        b'"text"',
        b"[" * 16_000,
        b"1" * 16_000,
        b'{"email": "ann@example.com", "name": "\\ud800", "password": "correct horse battery"}',
        b'{"email": "ann@example.com", "name": "Ann", "password": "\\ud800 and ten more"}',
    ],
)
def test_a_body_that_is_no_json_object_is_400(client: Client, body: bytes) -> None:
    assert assert_refused(send(client, body), 400) == {}


@pytest.mark.django_db
@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_that_is_not_declared_as_json_is_415(client: Client, content_type: str) -> None:
    assert_refused(send(client, json.dumps(ANN), content_type=content_type), 415)


@pytest.mark.django_db
def test_a_body_that_is_too_large_is_413(client: Client) -> None:
    assert_refused(send(client, json.dumps({**ANN, "padding": "x" * SMALL_JSON.max_bytes})), 413)


@pytest.mark.django_db
def test_a_body_that_declares_itself_too_large_is_refused_before_it_is_read(client: Client) -> None:
    class Unreadable:
        def read(self, *_: Any) -> bytes:
            raise AssertionError("the body was read")

        readline = read

    response = client.generic(
        "POST",
        "/signup",
        content_type="application/json",
        **{"CONTENT_LENGTH": str(10**12), "wsgi.input": Unreadable()},  # type: ignore[arg-type]
    )
    assert_refused(response, 413)


@pytest.mark.django_db
def test_a_body_of_undeclared_length_is_411(client: Client) -> None:
    response = client.generic(
        "POST", "/signup", content_type="application/json", CONTENT_LENGTH="", HTTP_TRANSFER_ENCODING="chunked"
    )
    assert_refused(response, 411)


@pytest.mark.django_db
def test_an_error_of_ours_is_500_in_words_without_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(services, "sign_up", fail)
    response = send(Client(raise_request_exception=False), json.dumps(ANN))
    assert_refused(response, 500)
    assert "secret" not in response.content.decode()


@pytest.mark.django_db
def test_a_database_that_is_away_is_503_with_the_time_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise OperationalError("connection refused at 10.0.0.1")

    monkeypatch.setattr(services, "sign_up", fail)
    response = send(Client(raise_request_exception=False), json.dumps(ANN))
    assert_refused(response, 503)
    assert response["Retry-After"] == "5"
    assert "10.0.0.1" not in response.content.decode()


@pytest.mark.django_db
def test_a_field_that_nobody_asked_for_changes_nothing(client: Client) -> None:
    response = send(client, json.dumps({**ANN, "is_staff": True, "is_superuser": True, "id": 999}))
    assert response.status_code == 201
    user = User.objects.get()
    assert not user.is_staff
    assert not user.is_superuser
    assert user.pk != 999
