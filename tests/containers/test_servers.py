"""PostgreSQL and Redis as the compose file starts them, and the backup of what they hold."""

import os
import re
import subprocess
from pathlib import Path

import psycopg
import pytest
import redis

from devstack.home import BASE_DIR
from devstack.ports import LOOPBACK
from devstack.postgres import binaries
from devstack.throwaway import Server, ServerDidNotStart
from tests.containers.composed import Composed
from tests.containers.servers_of_compose import ComposedPostgres, Valkey

PAGE = (BASE_DIR / "docs" / "deployment.md").read_text()


def test_postgres_wants_a_password_of_who_comes_from_outside(postgres: ComposedPostgres) -> None:
    stranger = f"postgres://handoff@{LOOPBACK}:{postgres.port}/handoff"
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(stranger)
    with psycopg.connect(postgres.url()) as connection:
        row = connection.execute(
            "SELECT pg_encoding_to_char(encoding), datlocprovider, datlocale,"
            " current_setting('max_connections'), current_setting('jit') FROM pg_database WHERE datname = 'handoff'"
        ).fetchone()
    assert row == ("UTF8", "b", "C.UTF-8", "200", "off")


def test_what_a_backup_holds_is_there_again_after_the_commands_of_the_page(
    composed: Composed, postgres: ComposedPostgres, tmp_path: Path
) -> None:
    dump, *restore = re.findall(r"^docker compose exec -T postgres (.+)$", PAGE, re.MULTILINE)
    assert [command.split()[0] for command in restore] == ["dropdb", "createdb", "pg_restore"]

    def inside(command: str) -> None:
        env = {**os.environ, **postgres.inside, "PATH": f"{binaries()}:{os.environ['PATH']}"}
        done = subprocess.run(command, shell=True, check=False, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")

    def sign_up(name: str) -> None:
        composed.run(
            *("web", "manage", "createsuperuser", "--no-input"),
            DJANGO_SUPERUSER_EMAIL=f"{name}@example.org",
            DJANGO_SUPERUSER_NAME=name,
            DJANGO_SUPERUSER_PASSWORD="of an admin",
        )

    composed.configure(EMAIL_HOST="mail", EMAIL_PORT="1025")
    assert composed.start("migrate").process.wait(120) == 0
    sign_up("ada")
    inside(dump)
    sign_up("grace")
    # The next version, which is not wanted any more: its tables refer to ours.
    with psycopg.connect(composed.database_url) as connection:
        connection.execute("CREATE TABLE accounts_badge (user_id bigint REFERENCES accounts_user (id))")
    for command in restore:
        inside(command)
    assert composed.start("migrate").process.wait(120) == 0
    assert composed.ask("SELECT name FROM accounts_user") == [("ada",)]
    assert composed.ask("SELECT to_regclass('accounts_badge')") == [(None,)]
    assert "0 jobs run again" in composed.run("web", "manage", "restored", "--run-again")


@pytest.mark.parametrize("redis_password", ["by itself", "in a file"], indirect=True)
def test_redis_keeps_its_data_evicts_nothing_and_wants_a_password(valkey: Server) -> None:
    assert isinstance(valkey.engine, Valkey)
    with redis.Redis(port=valkey.engine.port) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    with redis.Redis.from_url(valkey.engine.url) as client:
        client.set("kept", "yes")
        told = client.config_get("appendonly", "appendfsync", "maxmemory-policy", "save")
    assert told == {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "save": ""}
    valkey.restart()
    with redis.Redis.from_url(valkey.engine.url, decode_responses=True) as client:
        assert client.get("kept") == "yes"


@pytest.mark.parametrize("redis_password", ["not at all"], indirect=True)
def test_redis_does_not_start_without_a_password(stopped_valkey: Server) -> None:
    with pytest.raises(ServerDidNotStart, match="set REDIS_PASSWORD or REDIS_PASSWORD_FILE"):
        stopped_valkey.start()
