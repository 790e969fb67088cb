import pytest
from django.test import Client

from accounts.models import User
from notifications.services import notify
from notifications.unsubscribe import unsubscribe_url
from tests.smtp import SmtpServer


def path_of(user: User) -> str:
    return unsubscribe_url(user_id=user.pk).removeprefix("http://127.0.0.1:8000")


def test_opening_the_link_shows_a_button_and_changes_nothing(client: Client, user: User) -> None:
    response = client.get(path_of(user))
    assert response.status_code == 200
    assert b'<form method="post"><button type="submit">Unsubscribe</button></form>' in response.content
    user.refresh_from_db()
    assert user.wants_digest


def test_the_button_ends_the_digest_without_login_cookie_or_csrf_token(user: User) -> None:
    client = Client(enforce_csrf_checks=True)
    response = client.post(path_of(user))
    assert response.status_code == 200
    assert b"You are unsubscribed" in response.content
    user.refresh_from_db()
    assert not user.wants_digest


def test_the_header_of_a_mail_unsubscribes_with_one_click(user: User, smtp_server: SmtpServer) -> None:
    notify(kind="welcome", user=user, period="", context={"name": "Ann"})
    url = smtp_server.mails[0].message["List-Unsubscribe"].strip().strip("<>")
    response = Client(enforce_csrf_checks=True).post(
        url.removeprefix("http://127.0.0.1:8000"),
        data="List-Unsubscribe=One-Click",
        content_type="application/x-www-form-urlencoded",
    )
    assert response.status_code == 200
    user.refresh_from_db()
    assert not user.wants_digest


def test_unsubscribing_twice_is_as_good_as_once(client: Client, user: User) -> None:
    assert client.post(path_of(user)).status_code == client.post(path_of(user)).status_code == 200
    user.refresh_from_db()
    assert not user.wants_digest


def test_a_link_ends_the_digest_of_its_own_user_only(client: Client, user: User) -> None:
    other = User.objects.create(email="bob@example.com", name="Bob")
    client.post(path_of(user))
    other.refresh_from_db()
    assert other.wants_digest


@pytest.mark.parametrize("method", ["get", "post"])
def test_a_link_that_was_changed_is_404_in_words(client: Client, user: User, method: str) -> None:
    signature = path_of(user).rpartition(".")[2]
    for path in (
        path_of(user)[:-1],
        f"/unsubscribe/{user.pk + 1}.{signature}",
        f"/unsubscribe/{user.pk}",
        "/unsubscribe/x",
    ):
        response = getattr(client, method)(path)
        assert response.status_code == 404
        assert b"This link does not work" in response.content
    user.refresh_from_db()
    assert user.wants_digest


def test_a_user_who_is_gone_is_unsubscribed_all_the_same(client: Client, user: User) -> None:
    path = path_of(user)
    user.delete()
    assert client.post(path).status_code == 200
