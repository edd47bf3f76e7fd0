"""What a hospital's network puts between a site and a server: TLS servers of all kinds, and proxies."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

__all__ = ["Answer", "Inspector", "Proxy", "proxying", "serving_plain", "serving_tls", "unused_port"]

_WAIT_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a server says to every request: by default what an unsigned one gets from a SuperLink."""

    status: int = 401
    content_type: str = "application/json"
    ahead_seconds: float | None = 0.0
    body: bytes = b'{"detail":"Invalid SuperNode authentication"}'

    def to_bytes(self) -> bytes:
        head = [f"HTTP/1.1 {self.status} X", f"content-type: {self.content_type}"]
        if self.ahead_seconds is not None:
            head.append(f"date: {formatdate(time.time() + self.ahead_seconds, usegmt=True)}")
        head += [f"content-length: {len(self.body)}", "server: teapot", "connection: close", "", ""]
        return "\r\n".join(head).encode() + self.body


def unused_port() -> int:
    """A port of this machine that refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def _listening(handle: Callable[[socket.socket], None], port: int = 0) -> Iterator[int]:
    """Hand each connection to a function, in a thread of its own, and close it afterwards."""
    threads: list[threading.Thread] = []

    def one(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(_WAIT_SECONDS)
            handle(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                threads.append(threading.Thread(target=one, args=(connection,)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", port)) as server:
        listener = threading.Thread(target=accept)
        listener.start()
        try:
            yield int(server.getsockname()[1])
        finally:
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            server.close()
            for thread in (listener, *threads):
                thread.join(_WAIT_SECONDS)


def _request(connection: socket.socket) -> str:
    data = b""
    while b"\r\n\r\n" not in data:
        got = connection.recv(4096)
        if not got:
            break
        data += got
    return data.decode("latin-1")


@contextmanager
def serving_tls(
    files: tuple[Path, Path], answer: Answer | bytes | None = None, *, port: int = 0
) -> Iterator[list[str]]:
    """A TLS server on 127.0.0.1 that gives every request one answer; gives the list of what it heard.

    Args:
        files: PEM files of its certificate and its key.
        answer: What it says; bytes as they are, None what a SuperLink says.
        port: Where.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    heard: list[str] = []

    def handle(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            request = _request(secured)
            heard.extend([request] if request else [])
            if request:
                secured.sendall(answer if isinstance(answer, bytes) else (answer or Answer()).to_bytes())

    with _listening(handle, port):
        yield heard


@contextmanager
def serving_plain(said: bytes, *, port: int) -> Iterator[None]:
    """A server on 127.0.0.1 that knows no TLS and says the same to everybody."""

    def handle(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(said)

    with _listening(handle, port):
        yield


class Inspector:
    """A TLS-inspecting proxy's authority, which makes a certificate for whatever host is asked for."""

    def __init__(
        self, folder: Path, *, name: str = "Clinic Web Gateway", organisation: str = "Clinic"
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        attributes = [(NameOID.ORGANIZATION_NAME, organisation), (NameOID.COMMON_NAME, name)]
        self._name = x509.Name([x509.NameAttribute(oid, text) for oid, text in attributes])
        self._folder = folder

    def files(self, host: str) -> tuple[Path, Path]:
        """Certificate and key for a host, signed by this authority."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)]))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=90))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        ).sign(self._key, hashes.SHA256())
        pem, private = self._folder / f"{host}.pem", self._folder / f"{host}.key"
        pem.write_bytes(certificate.public_bytes(Encoding.PEM))
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return pem, private


@dataclass(kw_only=True)
class Proxy:
    """How a proxy behaves.

    Attributes:
        refuses: Status with which it answers every CONNECT; None to let it pass.
        user: ``name:password`` that it demands; None for none.
        offers: Ways of authentication that it names.
        inspector: Opens TLS with certificates of its own; None to pass bytes on.
        mute: Closes every connection without a word.
        asked: Every request line that it got.
    """

    refuses: int | None = None
    user: str | None = None
    offers: str = 'Basic realm="clinic"'
    inspector: Inspector | None = None
    mute: bool = False
    asked: list[str] = field(default_factory=list)

    def handle(self, connection: socket.socket) -> None:
        request = _request(connection)
        self.asked.append(request.partition("\r\n")[0])
        if self.mute:
            return
        if self.refuses is not None:
            connection.sendall(f"HTTP/1.1 {self.refuses} No\r\ncontent-length: 0\r\n\r\n".encode())
            return
        wanted = None if self.user is None else base64.b64encode(self.user.encode()).decode()
        if wanted is not None and f"basic {wanted}".lower() not in request.lower():
            connection.sendall(
                f"HTTP/1.1 407 Proxy Authentication Required\r\nproxy-authenticate: {self.offers}\r\n"
                "content-length: 0\r\n\r\n".encode()
            )
            return
        host, _, port = request.split(" ")[1].rpartition(":")
        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        if self.inspector is not None:
            self._inspect(connection, host)
            return
        with socket.create_connection(("127.0.0.1", int(port)), timeout=_WAIT_SECONDS) as onward:
            back = threading.Thread(target=_pipe, args=(onward, connection))
            back.start()
            _pipe(connection, onward)
            back.join(_WAIT_SECONDS)

    def _inspect(self, connection: socket.socket, host: str) -> None:
        assert self.inspector is not None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.inspector.files(host))
        with contextlib.suppress(ssl.SSLError), context.wrap_socket(connection, server_side=True) as opened:
            got = _request(opened)
            self.asked += [got] if got else []


def _pipe(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@contextmanager
def proxying(proxy: Proxy) -> Iterator[int]:
    """A proxy on 127.0.0.1; gives its port."""
    with _listening(proxy.handle) as port:
        yield port
