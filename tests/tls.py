"""Servers that are spoken to over TLS: a way to those of this test run, with a certificate of its own authority."""

import datetime
import ipaddress
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from devstack.ports import LOOPBACK

_CHUNK_BYTES = 65_536
# What a client of PostgreSQL begins with where it wants TLS, and the answer.
_SSL_REQUEST, _YES = b"\x00\x00\x00\x08\x04\xd2\x16\x2f", b"S"


def make_certificate(folder: Path, name: str = "ca") -> Path:
    """A certificate for this host and its key, in one file; it is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} of a test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(LOOPBACK))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


class _Way(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, target: tuple[str, int], certificate: Path, *, is_postgresql: bool) -> None:
        super().__init__((LOOPBACK, 0), _Passing)
        self.target, self.is_postgresql = target, is_postgresql
        self.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.tls.load_cert_chain(certificate)


class _Passing(socketserver.BaseRequestHandler):
    server: _Way

    def handle(self) -> None:
        """Refuses whoever does not speak TLS."""
        if self.server.is_postgresql:
            if self.request.recv(len(_SSL_REQUEST)) != _SSL_REQUEST:
                return
            self.request.sendall(_YES)
        with (
            suppress(OSError),
            self.server.tls.wrap_socket(self.request, server_side=True) as client,
            socket.create_connection(self.server.target) as server,
        ):
            threading.Thread(target=_pass_on, args=[server, client], daemon=True).start()
            _pass_on(client, server)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(_CHUNK_BYTES):
            target.sendall(chunk)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextmanager
def over_tls(target: tuple[str, int], certificate: Path, *, is_postgresql: bool = False) -> Iterator[int]:
    """Listens with this certificate, and passes on what comes to a server; the value is the port."""
    with _Way(target, certificate, is_postgresql=is_postgresql) as way:
        threading.Thread(target=way.serve_forever, daemon=True).start()
        yield way.server_address[1]
        way.shutdown()
