"""The dashboard while it gets no news any more."""

import pytest
from django.contrib.sessions.models import Session
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.timeout(180)


def test_numbers_that_are_no_longer_refreshed_say_so(admin_page: Page, problems: list[str]) -> None:
    warning = admin_page.get_by_role("alert").filter(has_text="These numbers are no longer refreshed")
    expect(warning).to_have_count(0)
    Session.objects.all().delete()
    expect(warning).to_be_visible()
    expect(admin_page.get_by_role("row", name="email")).to_be_visible()
    assert all("403" in problem for problem in problems)
    problems.clear()
