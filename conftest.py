"""Starts the servers that tests need, before anything reads Django's settings.

That is why it happens here, on import, and why pyproject.toml does not name the settings: pytest-django would load them
first, and find no database.
"""

import os
from collections.abc import Iterator

import django
import pytest

from devstack.throwaway import Servers

SERVERS = Servers()
os.environ.update(SERVERS.variables)
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
# Sound leases that run out within seconds, so that tests of lost workers are quick.
os.environ.setdefault("JOBS_LEASE_SECONDS", "3")
os.environ.setdefault("JOBS_HEARTBEAT_SECONDS", "0.7")
os.environ.setdefault("JOBS_DISPATCH_SECONDS", "0.2")
# One loopback address is a webhook's legal target, so that the neighbouring ones can stand for the private network.
os.environ.setdefault("WEBHOOK_ALLOWED_NETWORKS", "127.0.0.1/32")
SERVERS.start()
django.setup()

_SLOW_FOLDERS = ("guarantees", "integration", "containers", "devstack", "embedding", "browser")

pytest_plugins = [
    "tests.servers",
    "tests.slow_redis",
    "tests.smtp",
    "tests.http_server",
    "tests.crm_stand_in",
    "tests.processes",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--units`: what a further Python or Django could break, without the minutes that real workers take."""
    parser.addoption(
        "--units", action="store_true", help="only tests that start no process, and those marked everywhere"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files whose tests take long come first, so that no process ends long after the others. Carries `--units` out."""
    if not config.getoption("--units"):
        starting = {item.path for item in items if _starts_processes(item)}
        items.sort(key=lambda item: (item.path.parent.name not in _SLOW_FOLDERS, item.path not in starting))
        return
    slow = [item for item in items if _starts_processes(item) and item.get_closest_marker("everywhere") is None]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


def _starts_processes(item: pytest.Item) -> bool:
    # `reader` follows the tutorial, on a stack of its own.
    return not {"processes", "reader"}.isdisjoint(getattr(item, "fixturenames", ()))


@pytest.fixture(autouse=True, scope="session")
def _no_connection_is_left(django_db_setup: None) -> Iterator[None]:
    """A report inside a transaction goes over a connection that its thread keeps, and the test database is dropped."""
    yield
    from jobs import settle
    from jobs.worker.notes import own_notes

    settle.close_beside()
    own_notes().close()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Before tests are spread over processes: each of those starts servers of its own, which its tests may stop."""
    SERVERS.stop()
    for name in (*SERVERS.variables, "DJANGO_SETTINGS_MODULE"):
        os.environ.pop(name, None)


def pytest_unconfigure() -> None:
    """The last thing that pytest does, also after Ctrl-C."""
    SERVERS.stop()
