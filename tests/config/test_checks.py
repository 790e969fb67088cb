"""The checks of PostgreSQL's and Redis's versions, against the real servers."""

import pytest
from django.core.management import call_command
from django.core.management.base import SystemCheckError

from config import checks
from tests.processes import Processes


@pytest.mark.django_db(transaction=True)
def test_the_servers_of_the_tests_are_new_enough() -> None:
    checks.refuse_old_servers()


@pytest.mark.django_db(transaction=True)
def test_old_servers_are_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "OLDEST_POSTGRESQL", 99)
    monkeypatch.setattr(checks, "OLDEST_REDIS", (99, 1))
    with pytest.raises(SystemCheckError) as refusal:
        checks.refuse_old_servers()
    assert "is too old: 99 or newer is needed" in str(refusal.value)
    assert "is too old: 99.1 or newer (or Valkey) is needed" in str(refusal.value)


START_ON_OLD_SERVERS = """
import config.checks
config.checks.OLDEST_POSTGRESQL = 99
{start}
"""
CELERY = "import sys; from celery.__main__ import main; sys.argv = ['celery', '-A', 'config', '{role}']; main()"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "start",
    ["import config.wsgi", CELERY.format(role="worker"), CELERY.format(role="beat")],
    ids=["web", "worker", "beat"],
)
def test_nothing_starts_on_an_old_server(processes: Processes, start: str) -> None:
    process = processes.start("tests.script", env={"SCRIPT": START_ON_OLD_SERVERS.format(start=start)})
    assert process.wait() != 0
    assert "is too old: 99 or newer is needed" in process.output


@pytest.mark.django_db
def test_django_finds_nothing_wrong_and_no_migration_missing() -> None:
    call_command("check", databases=["default"], fail_level="WARNING")
    call_command("makemigrations", check=True, dry_run=True)
