"""The client that posts to endpoints: what it dials, what it follows, how long it waits, how much it reads."""

import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.http_server import HttpServer, Reply
from tests.waiting import wait_until
from webhooks.clients import endpoint
from webhooks.clients.network import AddressRefused, GuardedBackend


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(endpoint, "READ_SECONDS", 0.5)


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Every name resolves to these, one after the other; returns the list of the names that are asked for."""
    asked: list[str] = []
    system = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            asked.append(host)
            return [found for each in addresses for found in system(each, port, *arguments, **options)]
        return system(host, port, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_body_and_headers_arrive_as_they_were_given(http_server: HttpServer) -> None:
    answer = endpoint.post(f"{http_server.url}/a%20b?c=d", body=b'{"a": 1}', headers={"webhook-id": "evt_1"})
    [request] = http_server.requests
    assert (request.method, request.path, request.body) == ("POST", "/a%20b?c=d", b'{"a": 1}')
    assert request.headers["webhook-id"] == "evt_1"
    assert request.headers["host"] == f"127.0.0.1:{http_server.port}"
    assert answer == endpoint.Answer(status=200, excerpt="thanks")


@pytest.mark.parametrize("host", ["127.0.0.2", "0x7f000002", "[::ffff:127.0.0.2]"])
def test_a_private_address_is_not_dialled_however_it_is_written(private_server: HttpServer, host: str) -> None:
    with pytest.raises(AddressRefused, match="private or reserved"):
        endpoint.post(f"http://{host}:{private_server.port}/", body=b"{}", headers={})
    assert private_server.requests == []


def test_a_name_that_leads_to_a_private_address_is_not_dialled(
    private_server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, "127.0.0.2")
    with pytest.raises(AddressRefused):
        endpoint.post(f"http://hooks.example.com:{private_server.port}/", body=b"{}", headers={})
    assert private_server.requests == []


def test_a_name_is_resolved_once_and_the_checked_address_is_dialled(
    http_server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = resolving(monkeypatch, "127.0.0.2", "127.0.0.1")
    endpoint.post(f"http://hooks.example.com:{http_server.port}/", body=b"{}", headers={})
    assert asked == ["hooks.example.com"]
    assert http_server.requests[0].headers["host"] == f"hooks.example.com:{http_server.port}"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_an_answer_and_is_not_followed(
    http_server: HttpServer, private_server: HttpServer, status: int
) -> None:
    http_server.answer(Reply(status=status, headers={"Location": f"{private_server.url}/secret"}))
    assert endpoint.post(http_server.url, body=b"{}", headers={}).status == status
    assert len(http_server.requests) == 1
    assert private_server.requests == []


def test_no_proxy_of_the_environment_is_used(http_server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert endpoint.post(http_server.url, body=b"{}", headers={}).status == 200


def test_of_an_endless_body_only_the_beginning_is_read(http_server: HttpServer) -> None:
    http_server.answer(Reply(status=500, body=b"no! ", is_endless=True))
    answer = endpoint.post(http_server.url, body=b"{}", headers={})
    assert (answer.status, len(answer.excerpt)) == (500, endpoint.EXCERPT_BYTES)
    assert answer.excerpt.startswith("no! x")
    wait_until(lambda: http_server.sent_bytes >= 0 and threading.active_count() >= 1)
    # What the kernels of both sides buffer, but no more.
    assert http_server.sent_bytes < 16 * 1024 * 1024


def test_an_excerpt_is_text_that_the_database_takes(http_server: HttpServer) -> None:
    http_server.answer(Reply(body=b"a\0b\xff"))
    assert endpoint.post(http_server.url, body=b"{}", headers={}).excerpt == "a�b�"


def test_an_endpoint_that_says_nothing_is_given_up(http_server: HttpServer) -> None:
    http_server.hold()
    with pytest.raises(endpoint.NoAnswer, match=r"No answer within 0.5 s."):
        endpoint.post(http_server.url, body=b"{}", headers={})


def test_an_endpoint_that_drips_its_answer_is_given_up(http_server: HttpServer) -> None:
    # Each byte comes in time for the read time-out; the whole would take far longer than the sum of both times.
    http_server.answer(Reply(headers={"X": "y" * 1000}, drip_seconds=0.05))
    with pytest.raises(endpoint.NoAnswer, match="No answer within"):
        endpoint.post(http_server.url, body=b"{}", headers={})


def test_a_body_that_breaks_off_does_not_change_what_the_status_has_said(http_server: HttpServer) -> None:
    http_server.answer(Reply(headers={"Content-Length": "100"}, body=b"half"))
    answer = endpoint.post(http_server.url, body=b"{}", headers={})
    assert (answer.status, answer.excerpt[:4]) == (200, "half")


def test_a_closed_port_a_name_of_nothing_and_a_server_of_something_else_are_no_answer() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with pytest.raises(endpoint.NoAnswer, match="connection failed"):
            endpoint.post(f"http://127.0.0.1:{nobody.getsockname()[1]}/", body=b"{}", headers={})
    with pytest.raises(endpoint.NoAnswer, match="cannot be resolved"):
        endpoint.post("http://nobody.invalid/", body=b"{}", headers={})


# -- TLS ---------------------------------------------------------------------------------------------------------------
def certificate(folder: Path, name: str) -> tuple[Path, ssl.SSLContext]:
    """A certificate for a name with its key in one file, and a context that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / f"{name}.pem"
    pem = serialization.Encoding.PEM
    file.write_bytes(
        made.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    trusting = ssl.create_default_context()
    trusting.load_verify_locations(cadata=made.public_bytes(pem).decode())
    return file, trusting


@contextmanager
def tls_server(certificate_file: Path) -> Iterator[tuple[int, list[str | None]]]:
    """A server with this certificate: its port, and the names that clients ask for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate_file)
    names: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    server = HttpServer()
    server._server.socket = context.wrap_socket(server._server.socket, server_side=True)
    server.start()
    try:
        yield server.port, names
    finally:
        server.stop()


def test_tls_speaks_of_the_name_while_the_checked_address_is_dialled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, "127.0.0.1")
    file, trusting = certificate(tmp_path, "hooks.example.com")
    with tls_server(file) as (port, names):
        answer = endpoint.post(f"https://hooks.example.com:{port}/", body=b"{}", headers={}, ssl_context=trusting)
        assert answer.status == 200
        assert names == ["hooks.example.com"]


def test_a_certificate_for_another_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "127.0.0.1")
    file, trusting = certificate(tmp_path, "other.example.com")
    with tls_server(file) as (port, _), pytest.raises(endpoint.NoAnswer, match="certificate"):
        endpoint.post(f"https://hooks.example.com:{port}/", body=b"{}", headers={}, ssl_context=trusting)


def test_the_guard_says_which_host_it_refuses() -> None:
    with pytest.raises(AddressRefused, match=r"^10\.0\.0\.1 leads"):
        GuardedBackend(allowed=(), total_seconds=1).connect_tcp("10.0.0.1", 80, timeout=1)
