"""The proxy in front of the web, as `docs/deployment.md` wants it: it ends TLS, and says so to the web."""

import datetime
import ipaddress
import ssl
import threading
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from devstack.ports import LOOPBACK

# These belong to one connection, and there are two.
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class TlsProxy:
    """Listens on a free port with a certificate of its own, and passes everything on to a port of this machine."""

    def __init__(self, *, to_port: int, folder: Path) -> None:
        self.certificate = folder / "certificate.pem"
        key = folder / "key.pem"
        _certify(self.certificate, key)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                _pass_on(self, to_port)

            do_POST = do_DELETE = do_PATCH = do_PUT = do_HEAD = do_GET  # noqa: N815  # their names

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, key)
        # Shaking hands is for the thread of the connection: one slow client would hold up all others.
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.url = f"https://{LOOPBACK}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        """Listens no more."""
        self._server.shutdown()
        self._server.server_close()


def _pass_on(handler: BaseHTTPRequestHandler, port: int) -> None:
    body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    headers = {name: value for name, value in handler.headers.items() if name.lower() != "x-forwarded-proto"}
    connection = HTTPConnection(LOOPBACK, port, timeout=60)
    try:
        connection.request(handler.command, handler.path, body, {**headers, "X-Forwarded-Proto": "https"})
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    handler.send_response_only(answer.status)
    for name, value in answer.getheaders():
        if name.lower() not in HOP_BY_HOP:
            handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(content)


def _certify(certificate: Path, key: Path) -> None:
    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, LOOPBACK)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(LOOPBACK))]), critical=False)
        .sign(secret, hashes.SHA256())
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key.write_bytes(secret.private_bytes(serialization.Encoding.PEM, *private))
