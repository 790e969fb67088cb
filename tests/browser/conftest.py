"""A real browser on a real server: Debian's Chromium, driven by Playwright."""

import os
import shutil
from collections.abc import Iterator

import pytest
from django.conf import settings
from django.test import Client
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, sync_playwright
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


@pytest.fixture(scope="module")
def context(browser: Browser, live_server: LiveServer) -> BrowserContext:
    """What the tests of a file share: styles, scripts and fonts that were read once."""
    return browser.new_context(base_url=live_server.url, viewport={"width": 1280, "height": 900})


@pytest.fixture
def page(context: BrowserContext, live_server: LiveServer, problems: list[str]) -> Iterator[Page]:
    """An empty tab. Fails the test when a page asks another host for anything or reports an error."""
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
    tab.close()
    context.clear_cookies()
    if problems:
        pytest.fail(f"The browser complained: {problems}")


@pytest.fixture
def signed_in(page: Page, admin: User, client: Client, live_server: LiveServer) -> Page:
    """An empty tab of the admin, whose session was made without the form: that takes two pages."""
    client.force_login(admin)
    session = client.cookies[settings.SESSION_COOKIE_NAME].value
    page.context.add_cookies([{"name": settings.SESSION_COOKIE_NAME, "value": session, "url": live_server.url}])
    return page


@pytest.fixture
def admin_page(signed_in: Page) -> Page:
    """A tab of the admin on the dashboard."""
    signed_in.goto("/admin/queues/")
    return signed_in
