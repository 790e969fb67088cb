"""Requests that hold what PostgreSQL cannot."""

import pytest
from django.test import Client

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    "path",
    [
        "/webhooks/in/%00",
        "/admin/%00/",
        "/unsubscribe/%00",
        "/api/images/%00",
        "/admin/jobs/job/?task=%00",
        "/health?%00",
        "/nothing?a=b&c=%00",
    ],
)
@pytest.mark.parametrize("method", ["get", "post"])
def test_a_nul_in_an_address_is_400(client: Client, path: str, method: str) -> None:
    assert getattr(client, method)(path).status_code == 400


@pytest.mark.parametrize("cookie", ['sessionid="\\000"', 'csrftoken="a\\000b"', "sessionid=%00"])
def test_a_nul_in_a_cookie_is_no_error_of_ours(client: Client, cookie: str) -> None:
    assert client.get("/admin/login/", headers={"Cookie": cookie}).status_code in {200, 400}


@pytest.mark.parametrize("name", ["task", "state", "queue", "q", "created_at__gte", "p", "o", "e", "actor_name"])
@pytest.mark.parametrize("page", ["jobs/job", "jobs/auditentry", "jobs/worker", "jobs/bulkaction"])
def test_no_page_of_the_admin_fails_for_a_nul(admin_client: Client, page: str, name: str) -> None:
    assert admin_client.get(f"/admin/{page}/?{name}=%00").status_code == 400
