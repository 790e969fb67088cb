from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser
from django.db import connection, connections, transaction
from django.test import Client

from accounts import services
from accounts.models import User
from accounts.signals import user_created
from jobs.models import Job

ANN = {"email": "ann@example.com", "name": "Ann", "password": "correct horse battery"}


def sign_up(client: Client, **changes: Any) -> Any:
    return client.post("/signup", data={**ANN, **changes}, content_type="application/json")


@pytest.mark.django_db
def test_a_sign_up_answers_201_with_the_id_of_the_user(client: Client) -> None:
    response = sign_up(client)
    assert response.status_code == 201
    assert response.json() == {"id": User.objects.get(email="ann@example.com").pk}


@pytest.mark.django_db
def test_a_sign_up_writes_one_welcome_job_of_the_new_user(client: Client) -> None:
    user_id = sign_up(client).json()["id"]
    job = Job.objects.get()
    assert job.task == "notifications.tasks.send_welcome"
    assert job.queue == "email"
    assert job.kwargs == {"user_id": user_id}
    assert job.dedup_key == f"welcome-{user_id}"
    assert job.priority == 1
    assert job.owner_id == user_id
    assert job.state == "delayed"
    assert job.max_attempts == 3
    assert timedelta(seconds=1.5) < job.run_at - job.created_at < timedelta(seconds=2.5)


@pytest.mark.django_db(transaction=True)
def test_user_and_welcome_job_are_written_by_one_transaction() -> None:
    services.sign_up(**ANN)
    with connection.cursor() as cursor:
        cursor.execute("SELECT u.xmin::text = j.xmin::text FROM accounts_user u JOIN jobs_job j ON j.owner_id = u.id")
        assert cursor.fetchall() == [(True,)]


@pytest.mark.django_db(transaction=True)
def test_a_sign_up_that_is_rolled_back_leaves_neither_user_nor_job() -> None:
    def sign_up_and_fail() -> None:
        with transaction.atomic():
            services.sign_up(**ANN)
            assert Job.objects.exists()
            raise InterruptedError

    with pytest.raises(InterruptedError):
        sign_up_and_fail()
    assert not User.objects.exists()
    assert not Job.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_receiver_that_fails_undoes_the_sign_up() -> None:
    def fail(**_: Any) -> None:
        raise InterruptedError

    user_created.connect(fail)
    try:
        with pytest.raises(InterruptedError):
            services.sign_up(**ANN)
    finally:
        user_created.disconnect(fail)
    assert not User.objects.exists()
    assert not Job.objects.exists()


@pytest.mark.django_db
def test_the_password_is_stored_as_argon2id_with_the_parameters_of_owasp(client: Client) -> None:
    sign_up(client)
    assert User.objects.get().password.startswith("argon2$argon2id$v=19$m=19456,t=2,p=1$")


@pytest.mark.django_db
def test_the_password_is_hashed_before_the_transaction_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    depth_outside = len(connection.savepoint_ids)
    original = User.set_password

    def spy(user: User, password: str | None) -> None:
        seen.append(len(connection.savepoint_ids) - depth_outside)
        original(user, password)

    monkeypatch.setattr(User, "set_password", spy)
    services.sign_up(**ANN)
    assert seen == [0]


@pytest.mark.django_db
def test_a_taken_address_is_409_however_it_is_typed(client: Client) -> None:
    assert sign_up(client).status_code == 201
    response = sign_up(client, email=" ANN@Example.COM ")
    assert response.status_code == 409
    assert response.json() == {
        "error": {"message": "An account with this e-mail address exists already.", "fields": {}}
    }
    assert User.objects.count() == 1
    assert Job.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_of_concurrent_sign_ups_with_one_address_one_succeeds_and_the_others_are_409() -> None:
    def attempt(_: int) -> int:
        try:
            status: int = sign_up(Client()).status_code
            return status
        finally:
            connections.close_all()

    with ThreadPoolExecutor(max_workers=8) as pool:
        statuses = sorted(pool.map(attempt, range(8)))
    assert statuses == [201] + [409] * 7
    assert User.objects.count() == 1
    assert Job.objects.count() == 1


@pytest.mark.django_db
def test_no_cookie_is_read_and_no_csrf_token_is_needed() -> None:
    client = Client(enforce_csrf_checks=True)
    response = sign_up(client)
    assert response.status_code == 201
    assert not response.cookies
    assert isinstance(response.wsgi_request.user, AnonymousUser)


@pytest.mark.django_db
def test_the_address_is_stored_in_lower_case_and_without_spaces_around_it(client: Client) -> None:
    sign_up(client, email="  Ann.Other@EXAMPLE.com ")
    assert User.objects.get().email == "ann.other@example.com"
