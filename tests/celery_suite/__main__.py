"""Runs the integration tests of Celery's own sources, unchanged: on the ledger, with results in Redis, and with results
in the database by django-celery-results. What fails on the ledger has to be named in docs/celery.md."""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import redis

from devstack.environment import REDIS_NAMES
from devstack.home import BASE_DIR, Home
from devstack.redis import Redis
from devstack.terminal import complain, say, table
from devstack.throwaway import Servers
from tests.celery_suite import outcomes
from tests.celery_suite.outcomes import Outcomes
from tests.celery_suite.plugin import LEDGER, OUTCOMES, RESULTS
from tests.celery_suite.sources import NotTheLocked, digest, sdist, unpack

_ALL = ("django-db", "redis", "ledger")
_MODULES = [f"t/integration/test_{name}.py" for name in ("canvas", "tasks", "inspect", "group_chains")]
_PLUGINS = ["-p", "celery.contrib.pytest", "-p", "tests.celery_suite.plugin"]
# As most of the tests say themselves.
_TEST_SECONDS = 300
# Of this project's own tests.
_NO_PLUGINS = ["-p", "no:django", "-p", "no:randomly", "-p", "no:xdist", "-p", "no:cacheprovider"]


def main(words: list[str]) -> int:
    """The exit status: 1 where the page and the ledger's outcomes differ, 2 where there is nothing to run."""
    arguments, for_pytest = _parser().parse_known_args(words)
    for name in ("DATABASE_URL", *REDIS_NAMES):
        # Everything in the databases is removed: never those that somebody named.
        os.environ.pop(name, None)
    try:
        archive = sdist(Home.here().folder / "celery-suite")
    except NotTheLocked as error:
        complain(str(error))
        return 2
    say(f"{archive.name}, sha256 {digest(archive)}")
    found: dict[str, Outcomes] = {}
    known = outcomes.differences()
    with tempfile.TemporaryDirectory() as folder:
        suite = unpack(archive, Path(folder))
        for results in arguments.results or _ALL:
            say(f"— {results}")
            expected = [name for name, always in known.items() if always and results == "ledger"]
            found[results] = _run(results, suite, for_pytest, expected)
    _show(found)
    if not all(found.values()):
        complain("No test was run.")
        return 2
    wrong = outcomes.complaints(found.get("ledger", {}), known)
    for line in wrong:
        complain(line)
    return 1 if wrong else 0


def _run(results: str, suite: Path, words: Sequence[str], expected: Collection[str]) -> Outcomes:
    """The tests, each in the surroundings that those before it have left, and what failed there unexpectedly once more.

    The tests themselves ask for up to five repetitions of most of them.
    """
    has_path = any(word.startswith("t/") for word in words)
    found = _run_once(results, suite, [*words, *([] if has_path else _MODULES)])
    again = [f"t/integration/{name}" for name in outcomes.failed(found) if name not in expected]
    if again:
        say("— once more")
        found |= _run_once(results, suite, again)
    return found


def _run_once(results: str, suite: Path, words: Sequence[str]) -> Outcomes:
    servers = Servers()
    noted = servers.folder / "outcomes"
    noted.touch()
    try:
        servers.start()
        env = {**os.environ, **servers.variables, **_variables(results, servers), OUTCOMES: str(noted)}
        options = ["-q", f"--rootdir={suite}", f"--timeout={_TEST_SECONDS}", *_PLUGINS, *_NO_PLUGINS]
        command = [sys.executable, "-m", "pytest", *options, *words]
        subprocess.run(command, check=False, cwd=suite, env=env)
        return outcomes.read(noted)
    finally:
        servers.stop()


def _variables(results: str, servers: Servers) -> dict[str, str]:
    """Where the tests find their servers, and what their applications are to be."""
    assert servers.redis is not None
    engine = servers.redis.engine
    assert isinstance(engine, Redis)
    # The tests know no password.
    with redis.Redis.from_url(engine.url) as client:
        client.config_set("requirepass", "")
    url = f"redis://127.0.0.1:{engine.port}/0"
    backends = {"redis": url, "django-db": "django-db", "ledger": f"{LEDGER}://"}
    settings = {"django-db": "tests.celery_suite.settings", "ledger": "tests.celery_suite.ledger_settings"}
    return {
        RESULTS: results,
        "TEST_BROKER": url,
        "TEST_BACKEND": backends[results],
        "REDIS_HOST": "127.0.0.1",
        "REDIS_PORT": str(engine.port),
        "PYTHONPATH": str(BASE_DIR),
        # Some tests read what the worker has logged.
        "WORKER_LOGLEVEL": "INFO",
        **({"DJANGO_SETTINGS_MODULE": settings[results]} if results in settings else {}),
    }


def _show(found: dict[str, Outcomes]) -> None:
    columns = ("passed", "failed", "lost", "skipped")
    rows = [(results, *(str(outcomes.counted(of_one)[name]) for name in columns)) for results, of_one in found.items()]
    say()
    say(table([("results", *columns), *rows]))
    for results, of_one in found.items():
        for name in outcomes.failed(of_one):
            elsewhere = [other for other in found if found[other].get(name) == "passed"]
            say(f"  {results}: {name} failed" + (f"; passed: {', '.join(elsewhere)}" if elsewhere else ""))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bin/celery-suite",
        description=__doc__,
        allow_abbrev=False,
        epilog="All other arguments are pytest's: names of tests like t/integration/test_inspect.py, or -k chord. "
        "Without any, the tests take about half an hour with each of the results: many wait for what must not come.",
    )
    parser.add_argument(
        "--results", action="append", choices=_ALL, help="where results are; may be given more than once (default: all)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
