"""With `--through-pgbouncer`, every guarantee is attacked behind a pooler in transaction mode as well."""

import pytest


@pytest.fixture(autouse=True)
def _through_pgbouncer(request: pytest.FixtureRequest) -> None:
    """Comes before what starts processes."""
    if not request.config.getoption("--through-pgbouncer") or "transactional_db" not in request.fixturenames:
        return
    marker = request.node.get_closest_marker("needs_sessions")
    if marker is not None:
        pytest.skip(f"not through PgBouncer: {marker.args[0]}")
    request.getfixturevalue("roomy_pgbouncer")
