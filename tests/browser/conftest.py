"""A real browser on a real server: Debian's Chromium, driven by Playwright."""

import os
import re
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright
from pytest_django.live_server_helper import LiveServer

from accounts.models import User

PASSWORD = "a-long-password-7"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without its chatter with the outside. As root it cannot use its sandbox."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    flags = ["--disable-background-networking", "--disable-component-update", "--no-first-run"]
    if os.getuid() == 0:
        flags.append("--no-sandbox")
    with pytest.MonkeyPatch.context() as patch, sync_playwright() as playwright:
        # Playwright keeps an event loop in this thread, in which Django would refuse the tests' own queries.
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        found = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield found
        found.close()


@pytest.fixture
def admin(transactional_db: None) -> User:
    """Who may do everything."""
    return User.objects.create_superuser("admin@example.com", PASSWORD, name="Ada Admin")


@pytest.fixture
def problems() -> list[str]:
    """What went wrong in the browser. A test that expects it takes it out."""
    return []


@pytest.fixture
def page(browser: Browser, live_server: LiveServer, problems: list[str]) -> Iterator[Page]:
    """An empty tab. Fails the test when a page asks another host for anything or reports an error."""
    context = browser.new_context(base_url=live_server.url, viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    tab.set_default_timeout(20_000)

    def look_at(request: Request) -> None:
        if not request.url.startswith((live_server.url, "data:", "blob:")):
            problems.append(f"asked {request.url}")

    def listen_to(message: ConsoleMessage) -> None:
        if message.type == "error" and "favicon" not in message.location["url"]:
            problems.append(message.text)

    tab.on("request", look_at)
    tab.on("console", listen_to)
    tab.on("pageerror", lambda error: problems.append(str(error)))
    yield tab
    context.close()
    if problems:
        pytest.fail(f"The browser complained: {problems}")


@pytest.fixture
def admin_page(page: Page, admin: User) -> Page:
    """A tab in which the admin has logged in through the form."""
    page.goto("/admin/login/?next=/admin/queues/")
    page.get_by_label("Email").fill(admin.email)
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    # A pattern with stars would be content with the login page, whose address ends the same.
    page.wait_for_url(re.compile(r"^[^?]+/admin/queues/$"))
    return page
