"""The lists of the admin, asked with addresses that mean nothing."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib import admin
from django.db import models
from django.test import Client
from django.urls import reverse

from tests.jobs.factories import make_job

pytestmark = pytest.mark.django_db

HUGE = "9" * 400
HALF_A_CHARACTER = "%ED%A0%80"
OF_EVERY_LIST = [
    f"p={10**30}",
    f"p={HUGE}",
    f"o={HUGE}",
    f"q={'9' * 5000}",
    f"q={HALF_A_CHARACTER}",
    f"{HALF_A_CHARACTER}=1",
    "no_such_field=1",
]
OF_A_MOMENT = [
    "__year=99999",
    "__year=0",
    f"__year={HUGE}",
    f"__week_day={10**30}",
    f"__gte={HUGE}",
    "__gte=0001-01-01T00:00:00%2B14:00",
    "__gte=9999-12-31T23:59:59-14:00",
]
OF_A_NUMBER = [f"={HUGE}", f"__gte={10**30}", f"__gte={HUGE}", "__range=1", f"__in={10**30},{HUGE}"]
OF_ANYTHING = [f"={HUGE}", f"={HALF_A_CHARACTER}", "__isnull=x", "__in=", f"__regex={HALF_A_CHARACTER}(", "__no_such=1"]


def addresses(model: type[models.Model]) -> Iterator[str]:
    """Those of its list that mean nothing, for one field of each kind; and the one to which Django sends from there."""
    base = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
    queries = [*OF_EVERY_LIST, "e=1"]
    for field in {type(field): field for field in model._meta.concrete_fields}.values():
        kinds: list[str] = OF_ANYTHING
        if isinstance(field, models.DateField):
            kinds = OF_A_MOMENT
        elif isinstance(field, (models.IntegerField, models.FloatField)):
            kinds = OF_A_NUMBER
        queries += [f"{field.name}{query}" for query in kinds]
    return (f"{base}?{query}" for query in queries)


@pytest.mark.parametrize("model", sorted(admin.site._registry, key=str), ids=str)
def test_a_list_answers_whatever_the_address_says(admin_client: Client, model: Any) -> None:
    make_job()
    for address in addresses(model):
        assert admin_client.get(address).status_code in {200, 302, 400}, address
