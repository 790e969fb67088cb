"""Every service of ours as a process, through the image's entrypoint, from the first start to the end."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
import redis

from devstack import admin, readiness
from devstack.crm import CONTACTS
from devstack.home import BASE_DIR
from devstack.ports import free_port
from devstack.postgres import DATABASE, Postgres
from devstack.throwaway import Server, ServerDidNotStart
from jobs.queues import WORKER_GROUPS
from tests.containers import compose
from tests.containers.composed import Composed, MailCatcher, Valkey
from tests.containers.tls_proxy import TlsProxy
from tests.crm_stand_in import CrmStandIn
from tests.waiting import wait_until

SCALE = {"worker-email": 5}
# Eleven processes start at once; a busy machine takes its time.
START_SECONDS = 240
ENTRYPOINT = BASE_DIR / "bin" / "entrypoint"
ADMIN_PASSWORD = "of the first admin"
REDIS_PASSWORD = compose.ENV_FILE["REDIS_PASSWORD"]


@pytest.fixture
def redis_password(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The variables by which the password of Redis is given: by itself, or in a file, or not at all."""
    way = getattr(request, "param", "by itself")
    (tmp_path / "redis-password").write_text("" if way == "not at all" else f"{REDIS_PASSWORD}\n")
    in_file = {"REDIS_PASSWORD": "", "REDIS_PASSWORD_FILE": str(tmp_path / "redis-password")}
    return {} if way == "by itself" else in_file


@pytest.fixture
def stopped_valkey(redis_password: dict[str, str], tmp_path: Path) -> Server:
    project = compose.project(folder=tmp_path, **redis_password)
    engine = Valkey(project, folder=tmp_path / "redis", password=REDIS_PASSWORD)
    engine.prepare()
    return Server(engine, stop_signal=signal.SIGTERM)


@pytest.fixture
def valkey(stopped_valkey: Server) -> Iterator[Server]:
    stopped_valkey.start()
    yield stopped_valkey
    stopped_valkey.stop()


@pytest.fixture
def catcher(tmp_path: Path) -> Iterator[MailCatcher]:
    found = MailCatcher(tmp_path / "mail")
    wait_until(lambda: readiness.listens(found.smtp_port) and readiness.serves(found.api), timeout=60)
    yield found
    found.stop()


@pytest.fixture
def composed(postgres_server: Server, valkey: Server, catcher: MailCatcher, tmp_path: Path) -> Iterator[Composed]:
    assert isinstance(postgres_server.engine, Postgres)
    assert isinstance(valkey.engine, Valkey)
    postgres_server.engine.create_database()
    project = Composed(
        postgres=postgres_server.engine, redis=valkey.engine, catcher=catcher, web_port=free_port(), folder=tmp_path
    )
    yield project
    for container in project.started.values():
        container.kill()
        sys.stdout.write(f"--- {container.name}\n{container.output}\n")
    with psycopg.connect(postgres_server.engine.url("postgres"), autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{DATABASE}" WITH (FORCE)'.encode())


@pytest.fixture
def proxy(composed: Composed, tmp_path: Path) -> Iterator[TlsProxy]:
    found = TlsProxy(to_port=composed.web_port, folder=tmp_path)
    yield found
    found.stop()


@pytest.mark.timeout(900)
def test_the_composed_services_pass_the_demo_and_end_in_good_order(
    composed: Composed, proxy: TlsProxy, catcher: MailCatcher, crm: CrmStandIn, postgres_server: Server, tmp_path: Path
) -> None:
    assert isinstance(postgres_server.engine, Postgres)
    composed.configure(
        POSTGRES_PASSWORD=postgres_server.engine.password,
        SITE_URL=proxy.url,
        # For a trial, with the profile `mail`.
        EMAIL_HOST="mail",
        EMAIL_PORT="1025",
        # The demo's receiver is on this machine.
        WEBHOOK_ALLOWED_NETWORKS="127.0.0.0/8",
        **crm.env,
    )
    migrate = composed.start("migrate")
    assert migrate.process.wait(START_SECONDS) == 0, migrate.output
    ours = [name for name, service in composed.services.items() if compose.is_ours(service) and name != "migrate"]
    running = [composed.start(name, number=n + 1) for name in ours for n in range(SCALE.get(name, 1))]
    for container in running:
        wait_until(lambda it=container: it.why_not_healthy() == "", timeout=START_SECONDS, reason=container.name)  # type: ignore[misc]
    plain = httpx.get(f"http://127.0.0.1:{composed.web_port}/admin/", trust_env=False)
    assert (plain.status_code, plain.headers["Location"][:8]) == (301, "https://")

    composed.run(
        *("web", "manage", "createsuperuser", "--no-input"),
        DJANGO_SUPERUSER_EMAIL=admin.EMAIL,
        DJANGO_SUPERUSER_NAME="Admin",
        DJANGO_SUPERUSER_PASSWORD=ADMIN_PASSWORD,
    )
    (tmp_path / "admin-password").write_text(ADMIN_PASSWORD)
    stack = tmp_path / "stack.json"
    urls = {"web": proxy.url, "database": composed.database_url, "mail_api": catcher.api, "crm": f"{crm.url}{CONTACTS}"}
    stack.write_text(json.dumps({"processes": [], "urls": urls, "home": str(tmp_path)}))
    demo = subprocess.run(
        [sys.executable, "-m", "devstack", "demo", f"--stack={stack}", "--users=20"],
        check=False,
        cwd=BASE_DIR,
        env={**os.environ, "SSL_CERT_FILE": str(proxy.certificate)},
        capture_output=True,
        text=True,
    )
    sys.stdout.write(demo.stdout)
    assert demo.returncode == 0, demo.stderr

    nodes = [node for (node,) in composed.ask("SELECT node FROM jobs_worker WHERE dead_at IS NULL")]
    assert len(set(nodes)) == len(nodes) == len(WORKER_GROUPS) + 4
    assert sum(node.startswith("worker-email@") for node in nodes) == 5

    for container in running:
        container.process.send_signal(signal.SIGTERM)
    ends = {container.name: container.process.wait(60) for container in running}
    assert set(ends.values()) == {0}, ends
    assert composed.ask("SELECT node FROM jobs_worker WHERE dead_at IS NULL") == []


@pytest.mark.parametrize("redis_password", ["by itself", "in a file"], indirect=True)
def test_the_redis_of_the_compose_file_keeps_its_data_evicts_nothing_and_wants_a_password(valkey: Server) -> None:
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
def test_the_redis_of_the_compose_file_does_not_start_without_a_password(stopped_valkey: Server) -> None:
    with pytest.raises(ServerDidNotStart, match="set REDIS_PASSWORD or REDIS_PASSWORD_FILE"):
        stopped_valkey.start()


READ_SECRETS = """
import json, redis
from django.conf import settings
from django.db import connection
connection.ensure_connection()
redis.Redis.from_url(settings.REDIS_URL).ping()
names = "SECRET_KEY", "EMAIL_HOST_PASSWORD", "CRM_TOKEN"
print(json.dumps({name: getattr(settings, name) for name in names}))
"""


def test_secrets_may_come_from_files(composed: Composed, postgres_server: Server, tmp_path: Path) -> None:
    assert isinstance(postgres_server.engine, Postgres)
    shown = {"SECRET_KEY": "f" * 50, "EMAIL_HOST_PASSWORD": "of the SMTP server", "CRM_TOKEN": "of the CRM"}
    secrets = {**shown, "POSTGRES_PASSWORD": postgres_server.engine.password, "REDIS_PASSWORD": REDIS_PASSWORD}
    for name, value in secrets.items():
        (tmp_path / name).write_text(f"{value}\n")
    files = {f"{name}_FILE": str(tmp_path / name) for name in secrets}
    composed.configure(EMAIL_HOST="mail", EMAIL_PORT="1025", **dict.fromkeys(secrets, ""), **files)
    told = composed.run("web", "manage", "shell", "--no-imports", "-c", READ_SECRETS)
    assert json.loads(told.splitlines()[-1]) == shown


def test_an_unknown_role_or_group_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    for arguments, told in ((["wokrer"], "worker NAME"), (["worker", "worker-mail"], "worker-email, worker-media")):
        done = subprocess.run([ENTRYPOINT, *arguments], check=False, env=env, capture_output=True, text=True)
        assert done.returncode != 0
        assert told in done.stderr
