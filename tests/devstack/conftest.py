"""The order of the tests of the local stack."""

import pytest

LAST = "test_stop_leaves_nothing_running"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever the random order: the test that stops the shared stack comes last in its module, which saves a start."""
    for item in [item for item in items if item.name == LAST]:
        module = [number for number, other in enumerate(items) if other.path == item.path]
        items.remove(item)
        items.insert(module[-1], item)
