"""Certificates: accepted by X.509 verification and a real TLS handshake, and refused by both when wrong."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509 import verification
from support.enrolment import NOW, Coordinator, never_asked

from fedtune.errors import FederationError
from fedtune.keys.authority import make_authority, read_authority, read_authority_key
from fedtune.keys.certificates import names_of, parse_certificate
from fedtune.keys.server import Server, ServerOrder, make_server, renew_server


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    coordinator = Coordinator(tmp_path)
    coordinator.begin()
    return coordinator


def problems(error: pytest.ExceptionInfo[FederationError]) -> list[tuple[str, str]]:
    return [(problem.code, problem.where) for problem in error.value.problems]


def verified(authority: Path, server: Path, subject: str | ipaddress.IPv4Address, now: datetime) -> None:
    named = x509.DNSName(subject) if isinstance(subject, str) else x509.IPAddress(subject)
    root = parse_certificate(authority.read_bytes())
    verifier = verification.PolicyBuilder().store(verification.Store([root])).time(now)
    verifier.build_server_verifier(named).verify(parse_certificate(server.read_bytes()), [])


def handshake(authority: Path, server: Server, name: str) -> str | None:
    """Shake hands over loopback as a site that trusts this authority alone; the reason if it refuses."""
    here = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    here.load_cert_chain(server.certificate_path, server.key)
    there = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    there.verify_flags |= ssl.VERIFY_X509_STRICT
    there.load_verify_locations(authority)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(20)
                try:
                    with here.wrap_socket(connection, server_side=True) as secured:
                        secured.sendall(b"hello")
                except ssl.SSLError:
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=20) as plain,
                there.wrap_socket(plain, server_hostname=name) as secured,
            ):
                assert secured.recv(5) == b"hello"
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        else:
            return None
        finally:
            thread.join(20)
            assert not thread.is_alive()


def test_a_server_is_known_by_each_of_its_names_and_by_no_other(coordinator: Coordinator) -> None:
    server = coordinator.server(dns=("localhost", "Hub.Example.org"), ip=("127.0.0.1", "2001:DB8::7"))
    authority = coordinator.folder / "ca.pem"
    assert names_of(server.certificate).dns == ("localhost", "hub.example.org")
    for name in ("localhost", "hub.example.org", ipaddress.ip_address("127.0.0.1")):
        verified(authority, server.certificate_path, name, NOW)
        assert handshake(authority, server, str(name)) is None
    with pytest.raises(verification.VerificationError):
        verified(authority, server.certificate_path, "evil.example.org", NOW)
    assert "mismatch" in (handshake(authority, server, "evil.example.org") or "")
    assert "mismatch" in (handshake(authority, server, "127.0.0.2") or "")


def test_a_server_of_another_authority_of_the_same_name_is_refused(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    other = Coordinator(tmp_path / "other")
    other.begin()
    server = other.server()
    with pytest.raises(verification.VerificationError):
        verified(coordinator.folder / "ca.pem", server.certificate_path, "localhost", NOW)
    assert handshake(coordinator.folder / "ca.pem", server, "localhost") is not None
    assert handshake(other.folder / "ca.pem", server, "localhost") is None


def test_a_certificate_that_ended_is_refused(tmp_path: Path) -> None:
    coordinator = Coordinator(tmp_path, now=NOW - timedelta(days=3))
    coordinator.begin()
    server, authority = coordinator.server(days=2), coordinator.folder / "ca.pem"
    verified(authority, server.certificate_path, "localhost", NOW - timedelta(days=2))
    with pytest.raises(verification.VerificationError):
        verified(authority, server.certificate_path, "localhost", NOW)
    assert handshake(authority, server, "localhost") == "certificate has expired"


def test_a_server_certificate_vouches_for_nobody(coordinator: Coordinator, tmp_path: Path) -> None:
    server = coordinator.server()
    impostor = tmp_path / "impostor"
    impostor.mkdir()
    (impostor / "ca.pem").write_bytes(server.certificate_path.read_bytes())
    (impostor / "ca.key").write_bytes(server.key.read_bytes())
    (impostor / "ca.key").chmod(0o600)
    with pytest.raises(FederationError) as error:
        read_authority(impostor, NOW)
    assert {problem.what for problem in error.value.problems} == {
        "the certificate is not that of an authority",
        "the certificate's key may not sign certificates",
        "the certificate is not signed by itself",
    }
    assert handshake(server.certificate_path, server, "localhost") is not None


def test_files_are_their_owners_alone_and_never_written_over(coordinator: Coordinator) -> None:
    server = coordinator.server()
    for path in (coordinator.folder / "ca.key", coordinator.folder / "coordinator.key", server.key):
        assert path.stat().st_mode & 0o777 == 0o600
    before = {path: path.read_bytes() for path in coordinator.root.rglob("*") if path.is_file()}
    with pytest.raises(FederationError) as error:
        coordinator.begin()
    assert problems(error) == [
        ("FT634", str(coordinator.folder / name)) for name in ("ca.pem", "ca.key", "coordinator.key")
    ]
    with pytest.raises(FederationError) as error:
        coordinator.server()
    assert problems(error) == [("FT634", str(path)) for path in (server.key, server.certificate_path)]
    assert {path: path.read_bytes() for path in coordinator.root.rglob("*") if path.is_file()} == before


def test_a_renewed_certificate_has_the_key_and_the_names_of_the_old_and_ends_later(
    coordinator: Coordinator,
) -> None:
    old = coordinator.server(dns=("localhost",), ip=("127.0.0.1",))
    key, order = old.key.read_bytes(), ServerOrder(name="hub", days=9, out=coordinator.root / "tls")
    new = renew_server(coordinator.folder, order, never_asked, NOW)
    assert old.key.read_bytes() == key
    assert names_of(new.certificate) == names_of(old.certificate)
    assert new.certificate.not_valid_after_utc > old.certificate.not_valid_after_utc
    assert new.certificate.serial_number != old.certificate.serial_number
    assert handshake(coordinator.folder / "ca.pem", new, "localhost") is None
    order = ServerOrder(name="hub", dns=("new.example.org",), out=coordinator.root / "tls")
    renamed = renew_server(coordinator.folder, order, never_asked, NOW)
    assert names_of(renamed.certificate).dns == ("new.example.org",)


def test_a_renewal_that_fails_leaves_the_old_certificate(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = coordinator.server()
    before = old.certificate_path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedtune.observability.disk.os.replace", full)
    with pytest.raises(Exception, match="FT705"):
        renew_server(
            coordinator.folder, ServerOrder(name="hub", out=coordinator.root / "tls"), never_asked, NOW
        )
    assert old.certificate_path.read_bytes() == before
    assert sorted(path.name for path in (coordinator.root / "tls").iterdir()) == ["hub.key", "hub.pem"]


def test_a_certificate_is_renewed_only_beside_its_own_key(coordinator: Coordinator) -> None:
    server = coordinator.server()
    order = ServerOrder(name="hub", out=coordinator.root / "tls")
    server.key.chmod(0o644)
    server.certificate_path.write_bytes(b"nothing")
    with pytest.raises(FederationError) as error:
        renew_server(coordinator.folder, order, never_asked, NOW)
    assert problems(error) == [("FT630", str(server.key)), ("FT631", str(server.certificate_path))]
    server.key.chmod(0o600)
    server.certificate_path.write_bytes((coordinator.folder / "ca.pem").read_bytes())
    with pytest.raises(FederationError, match="is the certificate of an authority"):
        renew_server(coordinator.folder, order, never_asked, NOW)
    other = ServerOrder(name="other", dns=("localhost",), out=order.out, days=1)
    made = make_server(coordinator.folder, other, never_asked, NOW)
    server.certificate_path.write_bytes(made.certificate_path.read_bytes())
    with pytest.raises(FederationError, match="not that of the key beside it"):
        renew_server(coordinator.folder, order, never_asked, NOW)


def test_everything_that_is_wrong_with_an_order_is_said_at_once(coordinator: Coordinator) -> None:
    order = ServerOrder(
        name="../hub",
        dns=("*.example.org", "192.0.2.7", "bücher.example", "a_b", ""),
        ip=("localhost", "192.0.2.07", "fe80::1%eth0"),
        days=3651,
        out=coordinator.root / "tls",
    )
    with pytest.raises(FederationError) as error:
        make_server(coordinator.root / "nowhere", order, never_asked, NOW)
    where = [problem.where for problem in error.value.problems]
    folder = str(coordinator.root / "nowhere" / "ca.pem")
    assert where == ["NAME", *["--dns"] * 5, *["--ip"] * 3, folder]
    assert "xn--" in error.value.problems[3].what
    assert not (coordinator.root / "tls").exists()


def test_no_certificate_holds_longer_than_its_authority(coordinator: Coordinator) -> None:
    coordinator.server(days=3650)
    with pytest.raises(FederationError, match="3651 days are longer than the authority's certificate holds"):
        renew_server(
            coordinator.folder,
            ServerOrder(name="hub", days=3651, out=coordinator.root / "tls"),
            never_asked,
            NOW,
        )


@pytest.mark.parametrize(("name", "days"), [("", 1), ("a\nb", 1), ("x" * 65, 1), ("x", 0), ("x", 36_501)])
def test_an_authority_has_a_name_and_an_end(tmp_path: Path, name: str, days: int) -> None:
    with pytest.raises(FederationError, match="FT635"):
        make_authority(tmp_path / "c", name=name, days=days, now=NOW)
    assert not (tmp_path / "c").exists()


def test_a_key_under_a_passphrase_opens_with_it_alone(tmp_path: Path) -> None:
    coordinator = Coordinator(tmp_path)
    made = coordinator.begin(passphrase=b"six random words")
    path = coordinator.folder / "ca.key"
    assert b"ENCRYPTED" in path.read_bytes()
    read_authority_key(coordinator.folder, made.certificate, lambda: b"six random words")
    with pytest.raises(FederationError, match="does not open with this passphrase"):
        read_authority_key(coordinator.folder, made.certificate, lambda: b"six random word")
    path.chmod(0o640)
    with pytest.raises(FederationError) as error:
        read_authority_key(coordinator.folder, made.certificate, never_asked)
    assert [problem.fix for problem in error.value.problems] == [f"chmod 600 {path}"]


def test_a_key_of_another_authority_is_not_used(coordinator: Coordinator, tmp_path: Path) -> None:
    other = Coordinator(tmp_path / "other")
    other.begin()
    (coordinator.folder / "ca.key").write_bytes((other.folder / "ca.key").read_bytes())
    with pytest.raises(FederationError, match="not the key of the certificate beside it"):
        coordinator.server()


def test_an_authority_that_ended_signs_and_enrols_nothing(tmp_path: Path) -> None:
    past = Coordinator(tmp_path, now=NOW - timedelta(days=3))
    past.begin(days=2)
    for work in (Coordinator(tmp_path).server, Coordinator(tmp_path).answer):
        with pytest.raises(FederationError, match="the certificate ended on"):
            work()
