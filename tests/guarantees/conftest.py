"""With `--through-pgbouncer`, every guarantee is attacked behind a pooler in transaction mode as well."""

import pytest


@pytest.fixture(autouse=True)
def _through_pgbouncer(request: pytest.FixtureRequest) -> None:
    """Comes before what starts processes."""
    if not request.config.getoption("--through-pgbouncer") or "transactional_db" not in request.fixturenames:
        return
    asks_itself = request.node.get_closest_marker("asks_postgresql_itself") is not None
    request.getfixturevalue("pgbouncer_of_processes" if asks_itself else "roomy_pgbouncer")
