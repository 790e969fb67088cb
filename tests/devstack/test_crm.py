"""The stand-in for the CRM speaks the API as documented, as far as we use it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from devstack.crm import CONTACTS, Contacts
from tests.crm_stand_in import TOKEN, CrmStandIn

ANN = {"properties": {"email": "ann@example.com", "firstname": "Ann"}}


@pytest.fixture
def api(crm: CrmStandIn) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=crm.url, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        yield client


def test_a_contact_is_created_once_and_updated_by_its_address(api: httpx.Client, tmp_path: Path) -> None:
    created = api.post(CONTACTS, json=ANN)
    assert (created.status_code, created.json()["id"]) == (201, "1")
    again = api.post(CONTACTS, json=ANN)
    assert (again.status_code, again.json()["message"]) == (409, "Contact already exists. Existing ID: 1")
    changes = {"properties": {"email": "ann@example.com", "firstname": "Anne"}}
    updated = api.patch(f"{CONTACTS}/Ann%40example.com?idProperty=email", json=changes)
    assert (updated.status_code, updated.json()["properties"]["firstname"]) == (200, "Anne")
    assert api.get(f"{CONTACTS}/ann%40example.com?idProperty=email").json() == updated.json()
    assert api.get(CONTACTS).json() == {"results": [updated.json()]}
    # Kept over a restart.
    assert Contacts(tmp_path / "contacts.json").all() == [updated.json()]


@pytest.mark.parametrize(
    ("method", "path", "body", "token", "status"),
    [
        ("POST", CONTACTS, ANN, "wrong", 401),
        ("POST", CONTACTS, {}, TOKEN, 400),
        ("POST", CONTACTS, {"properties": {"firstname": "Ann"}}, TOKEN, 400),
        ("PATCH", f"{CONTACTS}/nobody%40example.com?idProperty=email", ANN, TOKEN, 404),
        ("GET", f"{CONTACTS}/nobody%40example.com?idProperty=email", None, TOKEN, 404),
    ],
)
def test_what_it_refuses(crm: CrmStandIn, method: str, path: str, body: Any, token: str, status: int) -> None:
    answer = httpx.request(method, crm.url + path, json=body, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == status
    assert answer.json()["message"]
    assert crm.contacts.all() == []
