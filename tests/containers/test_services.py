"""Every service of ours as a process, through the image's entrypoint, from the first start to the end."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from devstack import admin
from devstack.crm import CONTACTS
from devstack.home import BASE_DIR
from jobs.queues import WORKER_GROUPS
from tests.containers import compose
from tests.containers.composed import NEIGHBOUR, Composed
from tests.containers.servers_of_compose import MailCatcher
from tests.containers.tls_proxy import TlsProxy
from tests.crm_stand_in import CrmStandIn
from tests.waiting import wait_until

SCALE = {"worker-email": 5}
# Eleven processes start at once; a busy machine takes its time.
START_SECONDS = 240
ENTRYPOINT = BASE_DIR / "bin" / "entrypoint"
ADMIN_PASSWORD = "of the first admin"


@pytest.mark.timeout(900)
def test_the_composed_services_pass_the_demo_and_end_in_good_order(
    composed: Composed, proxy: TlsProxy, catcher: MailCatcher, crm: CrmStandIn, tmp_path: Path
) -> None:
    composed.configure(
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
    address = f"http://{NEIGHBOUR}:{composed.web_port}/admin/"
    plain = httpx.get(address, headers={"Host": "127.0.0.1"}, trust_env=False)
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


READ_SECRETS = """
import json, redis
from django.conf import settings
from django.db import connection
connection.ensure_connection()
redis.Redis.from_url(settings.REDIS_URL).ping()
names = "SECRET_KEY", "EMAIL_HOST_PASSWORD", "CRM_TOKEN"
print(json.dumps({name: getattr(settings, name) for name in names}))
"""


def test_secrets_may_come_from_files(composed: Composed, tmp_path: Path) -> None:
    shown = {"SECRET_KEY": "f" * 50, "EMAIL_HOST_PASSWORD": "of the SMTP server", "CRM_TOKEN": "of the CRM"}
    secrets = {**shown, **{name: compose.ENV_FILE[name] for name in ("POSTGRES_PASSWORD", "REDIS_PASSWORD")}}
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
