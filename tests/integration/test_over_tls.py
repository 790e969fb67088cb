"""TLS is never dropped: what the URLs of PostgreSQL and Redis say holds for every connection."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from django.conf import settings

from devstack.ports import LOOPBACK
from jobs.models import Job
from tests import sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Processes, database_url
from tests.tls import make_certificate, over_tls
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    return make_certificate(tmp_path)


@pytest.fixture
def postgresql(authority: Path) -> Iterator[str]:
    """The URL of the test's database over TLS, without its options."""
    url = urlsplit(database_url())
    with over_tls((url.hostname or LOOPBACK, url.port or 5432), authority, is_postgresql=True) as port:
        yield f"postgres://{url.username}:{url.password}@{LOOPBACK}:{port}{url.path}"


@pytest.fixture
def redis_address(authority: Path) -> Iterator[str]:
    """The URL of the test's Redis over TLS, without its options."""
    url = urlsplit(settings.REDIS_URL)
    with over_tls((url.hostname or LOOPBACK, url.port or 6379), authority) as port:
        yield f"rediss://:{url.password}@{LOOPBACK}:{port}{url.path}"


@pytest.mark.parametrize("certificate_is", ["CERT_REQUIRED", "required"])
def test_a_worker_does_all_its_work_over_tls_with_an_authority_of_ones_own(
    processes: Processes, postgresql: str, redis_address: str, authority: Path, certificate_is: str
) -> None:
    env = {
        "DATABASE_URL": f"{postgresql}?sslmode=verify-full&sslrootcert={authority}",
        "REDIS_URL": f"{redis_address}?ssl_cert_reqs={certificate_is}&ssl_ca_certs={authority}",
    }
    processes.worker("default", "email", env=env)
    jobs = [
        sample_tasks.add.delay(1, 2),
        sample_tasks.add.apply_async((1, 2), countdown=1),
        sample_tasks.add.apply_async((1, 2), queue="email"),
    ]
    wait_until(lambda: Job.objects.filter(state="completed").count() == len(jobs))
    assert_ledger_consistent()


def run(processes: Processes, *arguments: str, env: dict[str, str]) -> tuple[int, str]:
    process = processes.start("django", *arguments, env={"DJANGO_SETTINGS_MODULE": "config.settings", **env})
    return process.wait(), process.output


def test_a_certificate_of_somebody_else_is_refused_by_postgresqls_client(
    processes: Processes, postgresql: str, authority: Path, tmp_path: Path
) -> None:
    for certificate, is_right in ((authority, True), (make_certificate(tmp_path, "another"), False)):
        env = {"DATABASE_URL": f"{postgresql}?sslmode=verify-full&sslrootcert={certificate}"}
        status, output = run(processes, "migrate", "--check", env=env)
        assert (status == 0) is is_right, output
        assert ("certificate verify failed" in output) is not is_right


def test_a_server_without_tls_is_refused_where_the_url_wants_it(processes: Processes) -> None:
    status, output = run(processes, "migrate", "--check", env={"DATABASE_URL": f"{database_url()}?sslmode=require"})
    assert status != 0
    assert "SSL" in output


def test_a_certificate_of_somebody_else_is_refused_by_the_client_of_redis(
    processes: Processes, redis_address: str, tmp_path: Path
) -> None:
    another = make_certificate(tmp_path, "another")
    url = f"{redis_address}?ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs={another}"
    status, output = run(processes, "doctor", env={"REDIS_URL": url})
    assert status != 0
    assert "certificate verify failed" in output
