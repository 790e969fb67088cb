"""Starts the servers that tests need, before anything reads Django's settings.

That is why it happens here, on import, and why pyproject.toml does not name the settings: pytest-django would load them
first, and find no database.
"""

import os
from collections.abc import Callable, Iterator

import django
import pytest
from hypothesis import settings

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
from jobs import health  # noqa: E402  # needs Django set up

# Each test asks anew.
health.SHARED_SECONDS = 0.0

_SLOW_FOLDERS = ("guarantees", "integration", "containers", "devstack", "embedding", "browser", "bench")
# Long ones that start no process: another process may take each of their tests.
_LONG_FILES = (
    *("test_claimer.py", "test_pacing.py", "test_floors.py", "test_scheduler.py"),
    *("test_every_call.py", "test_every_row.py", "test_every_canvas.py"),
)
# Their fixtures are made once for a file: a browser, a stack.
_SHARING_FILES = ("browser", "devstack")

pytest_plugins = [
    "tests.flushing",
    "tests.servers",
    "tests.slow_redis",
    "tests.smtp",
    "tests.http_server",
    "tests.crm_stand_in",
    "tests.processes",
    "tests.pgbouncer",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--units`: what a further Python or Django could break. `--all`: the variants too, before a change is done."""
    parser.addoption(
        "--units", action="store_true", help="only tests that start no process, and those marked everywhere"
    )
    parser.addoption("--all", action="store_true", help="the tests marked variant too, and 10,000 examples")
    parser.addoption(
        "--through-pgbouncer", action="store_true", help="all connections of tests of guarantees go through PgBouncer"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Properties take their number of examples from here, before they are imported."""
    # The profile of hypothesis that is loaded so far, which is another one in CI, is the parent of both.
    settings.register_profile("one of each", max_examples=100, deadline=None)
    settings.register_profile("all", max_examples=10_000, deadline=None)
    # What a further Python could break in a property, it breaks in the first examples.
    settings.register_profile("units", max_examples=10, deadline=None)
    if not config.getoption("--hypothesis-profile"):
        of_units = "units" if config.getoption("--units") else "one of each"
        settings.load_profile("all" if config.getoption("--all") else of_units)


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """The tests that take longest come first, so that no process ends long after the others.

    Without `--all` the variants are left out, and `--units` leaves out what starts processes.
    """
    if not config.getoption("--all"):
        _leave_out(config, items, lambda item: item.get_closest_marker("variant") is not None)
    if config.getoption("--units"):
        _leave_out(
            config, items, lambda item: _starts_processes(item) and item.get_closest_marker("everywhere") is None
        )
    starting = {item.path for item in items if _starts_processes(item) or item.path.name in _LONG_FILES}
    for item in items:
        _keep_together(item, starts_processes=item.path in starting)
    # Here the plugins put them into an order, and write the groups down.
    yield
    if not config.getoption("--units"):
        items.sort(
            key=lambda item: (
                -_longest_seconds(item),
                item.path.parent.name not in _SLOW_FOLDERS,
                item.path not in starting,
            )
        )


def _leave_out(config: pytest.Config, items: list[pytest.Item], is_left_out: Callable[[pytest.Item], bool]) -> None:
    config.hook.pytest_deselected(items=[item for item in items if is_left_out(item)])
    items[:] = [item for item in items if not is_left_out(item)]


def _longest_seconds(item: pytest.Item) -> float:
    """The time-out of a test, if it has one of its own: those need the most."""
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0]) if marker is not None else 0


def _keep_together(item: pytest.Item, *, starts_processes: bool) -> None:
    """Which tests one process of `--dist loadgroup` runs: those of a file that share what is made for it, or are quick.

    All others are spread one by one.
    """
    folder = item.path.parent.name
    if folder in _SHARING_FILES or not (starts_processes or folder in _SLOW_FOLDERS):
        item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


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
