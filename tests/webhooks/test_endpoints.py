"""Registering endpoints over the API."""

import json
from typing import Any

import pytest
from django.test import Client

from accounts import services as accounts
from accounts.models import User
from webhooks import sealing, services
from webhooks.models import Endpoint

pytestmark = pytest.mark.django_db
HOOKS = "/api/webhook-endpoints"


def call(user: User | None, method: str, path: str = HOOKS, body: Any = None) -> Any:
    headers = {"Authorization": f"Bearer {accounts.create_token(user=user)}"} if user else {}
    return Client().generic(method, path, _json(body), content_type="application/json", headers=headers)


def _json(body: Any) -> str:
    return "" if body is None else json.dumps(body)


def test_the_secret_is_shown_once_and_kept_encrypted(user: User) -> None:
    answer = call(user, "POST", body={"url": "https://example.com/hook", "event_types": ["media.ready"]})
    assert answer.status_code == 201
    secret = answer.json()["secret"]
    sealing.check(secret)
    endpoint = Endpoint.objects.get()
    assert secret[6:] not in endpoint.sealed_secret
    assert sealing.unseal(endpoint.sealed_secret) == secret
    [listed] = call(user, "GET").json()
    assert listed == {
        "id": str(endpoint.pk),
        "url": "https://example.com/hook",
        "event_types": ["media.ready"],
        "hears_everybody": False,
        "is_active": True,
        "created_at": listed["created_at"],
    }


def test_a_secret_sealed_under_an_older_key_stays_readable(user: User, settings: Any) -> None:
    sealed = sealing.seal("whsec_x")
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "another key of at least thirty-two characters"
    assert sealing.unseal(sealed) == "whsec_x"
    settings.SECRET_KEY_FALLBACKS = []
    with pytest.raises(sealing.Unreadable, match="SECRET_KEY has changed"):
        sealing.unseal(sealed)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "cannot be blank"),
        ("example.com", "must begin with https"),
        ("ftp://example.com/", "must begin with https"),
        ("javascript:alert(1)", "must begin with https"),
        ("https://", "not a URL"),
        ("https://exa mple.com", "not a URL"),
        ("https://example.com/\n", None),
        ("https://ann:secret@example.com/", "user name or password"),
        ("https://example.com/#a", "fragment"),
        ("https://example.com:22/", "port must be"),
        ("https://example.com:0/", "port must be"),
        ("https://example.com:99999/", "port must be"),
        ("http://10.0.0.1/", "private or reserved"),
        ("http://169.254.169.254/latest/meta-data", "private or reserved"),
        ("http://[::1]:8000/", "private or reserved"),
        ("http://[::ffff:10.0.0.1]/", "private or reserved"),
        ("http://0x7f000002/", "private or reserved"),
        ("http://2852039166/", "private or reserved"),
        ("https://example.com/" + "a" * 2000, "at most 2000"),
        ("https://example.com/\0", None),
    ],
)
def test_a_url_that_cannot_be_delivered_to_is_refused_in_words(user: User, url: str, words: str | None) -> None:
    answer = call(user, "POST", body={"url": url, "event_types": ["media.ready"]})
    if words is None:
        # Blanks around it are taken away; what is left must be a URL.
        assert answer.status_code in (201, 422)
        return
    assert answer.status_code == 422, answer.json()
    assert words in answer.json()["error"]["fields"]["url"]
    assert not Endpoint.objects.exists()


@pytest.mark.parametrize("host", ["db.internal", "printer.local", "a.localhost", "localhost", "LOCALHOST."])
def test_a_private_name_is_refused_unless_private_networks_are_allowed(user: User, settings: Any, host: str) -> None:
    body = {"url": f"http://{host}/", "event_types": ["media.ready"]}
    assert call(user, "POST", body=body).status_code == 201
    settings.WEBHOOK_ALLOWED_NETWORKS = ()
    refused = call(user, "POST", body=body)
    assert "private or reserved" in refused.json()["error"]["fields"]["url"]


@pytest.mark.parametrize(
    ("types", "words"),
    [
        ([], "cannot be blank"),
        (["user.deleted"], "no such event"),
        (["media.ready", "media.ready"], "once"),
        ("x", "list"),
    ],
)
def test_a_wrong_list_of_events_is_refused_in_words(user: User, types: Any, words: str) -> None:
    answer = call(user, "POST", body={"url": "https://example.com/", "event_types": types})
    assert answer.status_code == 422
    assert words in answer.json()["error"]["fields"]["event_types"]


def test_only_staff_hears_everybody(user: User) -> None:
    body = {"url": "https://example.com/", "event_types": ["user.created"], "hears_everybody": True}
    refused = call(user, "POST", body=body)
    assert (refused.status_code, list(refused.json()["error"]["fields"])) == (422, ["hears_everybody"])
    user.is_staff = True
    user.save()
    assert call(user, "POST", body=body).status_code == 201


def test_there_is_an_end_to_one_users_endpoints(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "ENDPOINTS_PER_USER_COUNT", 1)
    body = {"url": "https://example.com/", "event_types": ["user.created"]}
    assert call(user, "POST", body=body).status_code == 201
    refused = call(user, "POST", body=body)
    assert refused.status_code == 422
    assert "delete one first" in refused.json()["error"]["message"]


def test_an_endpoint_is_seen_and_deleted_by_its_owner_alone(user: User) -> None:
    other = User.objects.create(email="bob@example.com", name="Bob")
    endpoint, _ = services.create_endpoint(owner=user, url="https://example.com/", event_types=["media.ready"])
    path = f"{HOOKS}/{endpoint.pk}"
    assert call(other, "GET").json() == []
    assert call(other, "DELETE", path).status_code == 404
    assert call(user, "DELETE", f"{HOOKS}/nonsense").status_code == 404
    assert call(None, "DELETE", path).status_code == 401
    assert call(user, "DELETE", path).status_code == 204
    assert call(user, "DELETE", path).status_code == 404
    assert not Endpoint.objects.exists()
