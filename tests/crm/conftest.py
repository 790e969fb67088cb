"""A CRM for tests that answers what it is told, over real HTTP."""

from typing import Any

import pytest

from tests.http_server import HttpServer


@pytest.fixture
def crm_env(http_server: HttpServer, settings: Any) -> dict[str, str]:
    """The CRM is the test's HTTP server, in this process; the result says so to worker processes."""
    settings.CRM_BASE_URL, settings.CRM_TOKEN = http_server.url, "a token"
    return {"CRM_BASE_URL": http_server.url, "CRM_TOKEN": "a token"}
