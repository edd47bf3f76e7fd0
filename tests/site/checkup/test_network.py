"""The way to a server that is really there, in every state in which hospitals' networks leave it."""

from __future__ import annotations

import itertools
import re
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from email.utils import formatdate
from pathlib import Path

import httpx
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.superlink.main import create_app
from flwr.supernode.fleet_http_client import FleetHttpClient
from hypothesis import given, settings
from hypothesis import strategies as st
from support.enrolment import NOW, Coordinator
from support.site_folder import JoinedSite
from support.wayside import Answer, Inspector, Proxy, proxying, serving_plain, serving_tls, unused_port

from fedtune.coordinator.gate.server import Gate
from fedtune.coordinator.gate.settings import GateSettings
from fedtune.keys.certificates import (
    ServerNames,
    authority_certificate,
    parse_certificate,
    server_certificate,
    to_pem,
)
from fedtune.keys.private import new_key, pem, read_pem_key
from fedtune.site.checkup import answer, certificate, reaching
from fedtune.site.checkup.route import ASKED, Address, Way, parsed, presented_certificate
from fedtune.site.checkup.run import run_site_checks
from fedtune.site.findings import Check, Finding

Files = tuple[Path, Path]


def port_of(site: JoinedSite) -> int:
    return Address.of(site.address).port


def network(site: JoinedSite) -> dict[str, Check]:
    """What the doctor finds of the network, by name."""
    made = itertools.takewhile(
        lambda check: not check.name.startswith("base model"), run_site_checks(site.folder)
    )
    names = {"name of the server", "connection", "proxy", "certificate", "SuperLink", "clock"}
    return {check.name: check for check in made if check.name in names}


def codes(found: dict[str, Check]) -> dict[str, str]:
    return {name: check.code for name, check in found.items() if check.code}


@contextmanager
def through(proxy: Proxy, monkeypatch: pytest.MonkeyPatch, user: str = "") -> Iterator[int]:
    with proxying(proxy) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{user}127.0.0.1:{port}")
        yield port


def made_for(site: JoinedSite, name: str, *, begins: int, days: int) -> Files:
    """A certificate of the right authority that begins some days from now."""
    key, folder = new_key(), site.root / "made"
    folder.mkdir(exist_ok=True)
    authority = parse_certificate((site.desk.folder / "ca.pem").read_bytes())
    made = server_certificate(
        key.public_key(),
        name,
        ServerNames(dns=("localhost",)),
        authority=authority,
        authority_key=read_pem_key(site.desk.folder / "ca.key", "the authority's key"),
        days=days,
        now=NOW + timedelta(days=begins),
    )
    shown, private = folder / f"{name}.pem", folder / f"{name}.key"
    shown.write_bytes(to_pem(made))
    private.write_bytes(pem(key))
    return shown, private


# A server as it should be


def test_a_server_as_it_should_be_passes_every_check(joined: JoinedSite, server: Files) -> None:
    with serving_tls(server, port=port_of(joined)) as heard:
        found = network(joined)
    assert {name: check.status for name, check in found.items()} == {
        "name of the server": "ok",
        "connection": "ok",
        "certificate": "ok",
        "SuperLink": "ok",
        "clock": "ok",
    }
    assert re.fullmatch(
        r"TLSv1\.3; CN=hub, issued by CN=test, for localhost, 36[45] days left", found["certificate"].finding
    )
    (request,) = heard
    assert request.startswith(f"POST {ASKED} HTTP/1.1\r\n")
    assert "content-length: 0" in request.lower()
    assert "flwr-" not in request  # neither key nor signature of the site


def test_a_certificate_that_ends_soon_is_noted(joined: JoinedSite) -> None:
    with serving_tls(made_for(joined, "soon", begins=0, days=12), port=port_of(joined)):
        check = network(joined)["certificate"]
    assert check.status == "warning"
    assert re.search(r"1[12] days left$", check.finding)
    assert "keys server --renew" in str(check.fix)


# Names and connections


def test_a_server_that_does_not_listen_is_named(joined: JoinedSite) -> None:
    found = network(joined)
    assert codes(found) == {"connection": "FT843"}
    assert joined.address in found["connection"].finding
    assert "refused" in found["connection"].finding
    assert found["certificate"].finding == "not checked: the server was not reached"


def test_a_name_that_nobody_knows_is_named(tmp_path: Path) -> None:
    site = JoinedSite(root=tmp_path, address="hub.fedtune.invalid:9092", sites=("ear",))
    found = network(site)
    assert codes(found) == {"name of the server": "FT842", "connection": "FT842"}
    assert "hub.fedtune.invalid" in found["name of the server"].finding


# TLS


def test_a_name_that_the_certificate_does_not_hold_for_is_shown_beside_those_it_holds_for(
    joined: JoinedSite,
) -> None:
    other = joined.certificate("other", dns=("hub.example.org", "fed.example.org"))
    with serving_tls((other.certificate_path, other.key), port=port_of(joined)) as heard:
        found = network(joined)
    assert codes(found) == {"certificate": "FT849"}
    assert found["certificate"].finding == (
        "the server's certificate does not hold for localhost, it holds for hub.example.org, fed.example.org"
    )
    assert heard == []


@pytest.mark.parametrize(
    ("begins", "words"),
    [(-40, "the certificate of the server ended on "), (3, "the certificate of the server begins on ")],
)
def test_a_certificate_out_of_its_time_is_named_with_its_date(
    joined: JoinedSite, begins: int, words: str
) -> None:
    with serving_tls(made_for(joined, f"at{begins}", begins=begins, days=20), port=port_of(joined)) as heard:
        found = network(joined)
    assert codes(found) == {"certificate": "FT850"}
    assert found["certificate"].finding.startswith(words)
    assert found["clock"].status == "warning"
    assert heard == []


def test_everything_that_is_wrong_with_a_certificate_is_said_at_once(joined: JoinedSite) -> None:
    files = made_for(joined, "worst", begins=-40, days=20)
    shown = parse_certificate(files[0].read_bytes())
    authority = parse_certificate((joined.folder / "ca.pem").read_bytes())
    way = Way(server=Address(host="elsewhere.example.org", port=1), stage="tls")
    found = list(certificate.judged(way, shown, authority, NOW))
    assert [finding.code for finding in found] == ["FT850", "FT849"]


def test_an_authority_that_has_ended_is_told_from_a_server_that_has(
    joined: JoinedSite, server: Files
) -> None:
    shown = parse_certificate(server[0].read_bytes())
    authority = parse_certificate((joined.folder / "ca.pem").read_bytes())
    way = Way(server=Address.of(joined.address), stage="tls")
    later = authority.not_valid_after_utc + timedelta(days=1)
    texts = [finding.text for finding in certificate.judged(way, shown, authority, later)]
    assert len(texts) == 2
    assert texts[1].startswith("the certificate of the authority ended on ")


def test_the_certificate_of_another_coordinator_is_told_from_an_inspecting_proxy(
    joined: JoinedSite, tmp_path: Path
) -> None:
    stranger = Coordinator(tmp_path)
    stranger.begin()
    other = stranger.server()
    with serving_tls((other.certificate_path, other.key), port=port_of(joined)) as heard:
        found = network(joined)
    assert codes(found) == {"certificate": "FT848"}
    assert "issued by CN=test and not by this federation's authority CN=test" in found["certificate"].finding
    assert "over another channel" in str(found["certificate"].fix)
    assert heard == []


def test_an_inspecting_firewall_on_the_way_is_named_by_its_issuer(joined: JoinedSite, tmp_path: Path) -> None:
    files = Inspector(tmp_path).files("localhost")
    with serving_tls(files, port=port_of(joined)) as heard:
        found = network(joined)
    assert codes(found) == {"certificate": "FT847"}
    said = found["certificate"].finding
    assert "issued by CN=Clinic Web Gateway,O=Clinic and not by this federation's authority CN=test" in said
    assert "a proxy or firewall on the way opens TLS" in said
    assert f"exempt {joined.address} from TLS inspection" in str(found["certificate"].fix)
    assert heard == []


def test_a_server_without_tls_is_named(joined: JoinedSite) -> None:
    with serving_plain(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", port=port_of(joined)):
        found = network(joined)
    assert codes(found) == {"certificate": "FT851"}
    assert "shows no certificate" in found["certificate"].finding


def test_reading_a_certificate_sends_nothing(joined: JoinedSite, server: Files) -> None:
    with serving_tls(server, port=port_of(joined)) as heard:
        shown = presented_certificate(Address.of(joined.address))
    assert isinstance(shown, x509.Certificate)
    assert shown == parse_certificate(server[0].read_bytes())
    assert heard == []


# Proxies


def test_a_proxy_that_lets_the_connection_pass_is_used(
    joined: JoinedSite, server: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Proxy()
    with serving_tls(server, port=port_of(joined)), through(proxy, monkeypatch) as port:
        found = network(joined)
    assert {check.status for check in found.values()} == {"ok"}
    assert found["proxy"].finding == f"the proxy 127.0.0.1:{port} lets connections to {joined.address} pass"
    assert proxy.asked == [f"CONNECT {joined.address} HTTP/1.1"]


def test_no_proxy_is_believed_as_httpx_believes_it(
    joined: JoinedSite, server: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Proxy(refuses=403)
    with serving_tls(server, port=port_of(joined)), through(proxy, monkeypatch):
        monkeypatch.setenv("NO_PROXY", "localhost")
        assert "proxy" not in network(joined)
    assert proxy.asked == []


def test_a_server_on_loopback_is_never_called_through_a_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = JoinedSite(root=tmp_path, address=f"127.0.0.1:{unused_port()}")
    proxy = Proxy()
    with through(proxy, monkeypatch):
        found = network(site)
    assert codes(found) == {"connection": "FT843"}
    assert proxy.asked == []


def test_a_proxy_that_is_not_there_is_named(joined: JoinedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    port = unused_port()
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
    found = network(joined)
    assert codes(found) == {"connection": "FT844"}
    assert f"the proxy 127.0.0.1:{port} that the environment names cannot be reached" in (
        found["connection"].finding
    )
    assert "NO_PROXY" not in str(found["connection"].fix)


def test_where_the_server_can_be_reached_without_the_proxy_that_is_said(
    joined: JoinedSite, server: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{unused_port()}")
    with serving_tls(server, port=port_of(joined)):
        found = network(joined)
    assert str(found["connection"].fix).endswith("can be reached without it: add localhost to NO_PROXY")


@pytest.mark.parametrize("url", ["socks5://127.0.0.1:1080", "gopher://127.0.0.1", "http://[::1"])
def test_a_proxy_setting_that_httpx_does_not_take_is_named(
    joined: JoinedSite, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", url)
    assert codes(network(joined)) == {"connection": "FT844"}


def test_a_proxy_that_demands_authentication_is_named_with_how_to_give_it(
    joined: JoinedSite, server: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Proxy(user="ear:s@cret")
    with serving_tls(server, port=port_of(joined)), through(proxy, monkeypatch) as port:
        found = network(joined)
        assert codes(found) == {"proxy": "FT845"}
        assert f"HTTPS_PROXY=http://USER:PASSWORD@127.0.0.1:{port}" in str(found["proxy"].fix)
        with through(proxy, monkeypatch, user="ear:wrong@"):
            assert codes(network(joined)) == {"proxy": "FT845"}
        with through(proxy, monkeypatch, user="ear:s%40cret@"):
            assert codes(network(joined)) == {}
    everything = " ".join(f"{check.finding} {check.fix}" for check in found.values())
    assert "cret" not in everything


def test_a_proxy_that_takes_no_password_is_told_from_one_that_does(
    joined: JoinedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    with through(Proxy(user="a:b", offers="Negotiate"), monkeypatch):
        check = network(joined)["proxy"]
    assert check.code == "FT845"
    assert "demands authentication (Negotiate)" in check.finding
    assert "only user name and password (Basic) can be given" in str(check.fix)


@pytest.mark.parametrize("status", [403, 405, 502])
def test_a_proxy_that_refuses_is_named_with_its_status(
    joined: JoinedSite, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    with through(Proxy(refuses=status), monkeypatch):
        found = network(joined)
    assert codes(found) == {"proxy": "FT846"}
    assert found["proxy"].finding.endswith(f"it answers CONNECT with {status}")
    assert f"allow CONNECT to {joined.address}" in str(found["proxy"].fix)


def test_what_is_no_proxy_at_all_is_named(joined: JoinedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    with through(Proxy(mute=True), monkeypatch):
        found = network(joined)
    assert codes(found) == {"proxy": "FT844"}
    assert "does not answer as a proxy does" in found["proxy"].finding


def test_a_proxy_that_inspects_tls_is_named_and_gets_nothing_to_read(
    joined: JoinedSite, server: Files, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    proxy = Proxy(inspector=Inspector(tmp_path))
    with serving_tls(server, port=port_of(joined)), through(proxy, monkeypatch) as port:
        found = network(joined)
    assert codes(found) == {"certificate": "FT847"}
    said = found["certificate"].finding
    assert "CN=Clinic Web Gateway,O=Clinic" in said
    assert f"the proxy 127.0.0.1:{port} opens TLS" in said
    assert set(proxy.asked) == {f"CONNECT {joined.address} HTTP/1.1"}


# Who answers, and what time it is there


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        (Answer(status=503), "failed", "a gate answers at .* and passes nothing on .*: no SuperLink"),
        (Answer(status=429), "failed", "is no SuperLink: status 429"),
        (Answer(status=404), "failed", "is no SuperLink: status 404 for /v1/fleet/.*, from teapot"),
        (Answer(content_type="text/html"), "failed", "is no SuperLink: status 401"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "failed", "does not answer as a web server does"),
        (b"", "failed", "does not answer as a web server does"),
    ],
)
def test_what_answers_is_told(
    joined: JoinedSite, server: Files, said: Answer | bytes, status: str, words: str
) -> None:
    with serving_tls(server, said, port=port_of(joined)):
        check = network(joined)["SuperLink"]
    assert check.status == status
    assert re.search(words, check.finding)
    assert check.code == ("FT853" if status == "failed" else None)


@pytest.mark.parametrize(
    ("ahead", "status"),
    [(0, "ok"), (-9, "failed"), (290, "warning"), (320, "failed"), (86_400, "failed"), (None, "warning")],
)
def test_a_clock_beyond_what_flower_takes_has_failed(
    joined: JoinedSite, server: Files, ahead: float | None, status: str
) -> None:
    with serving_tls(server, Answer(ahead_seconds=ahead), port=port_of(joined)):
        check = network(joined)["clock"]
    assert check.status == status
    assert check.code == ("FT852" if status == "failed" else None)


@given(
    true_ahead=st.floats(-400, 60),
    trip=st.floats(0, 3),
    part=st.floats(0, 1),
    age=st.floats(0, 1),
    now=st.floats(1.7e9, 1.9e9),
)
def test_a_clock_is_judged_wrong_only_beyond_what_the_date_leaves_open(
    true_ahead: float, trip: float, part: float, age: float, now: float
) -> None:
    """The date is cut to whole seconds and up to one second old when it is sent, and the way takes time."""
    server_now = now - true_ahead + part * trip
    way = Way(server=Address(host="a", port=1), sent=now, received=now + trip)
    way.headers = {"date": formatdate(int(server_now - age), usegmt=True)}
    finding = answer.clock(way)
    error = 1 + trip / 2 + 1e-3
    if finding.status == "failed":
        assert true_ahead >= 5 - error or true_ahead <= -305 + error
    if true_ahead >= 5 + error or true_ahead <= -305 - error:
        assert finding.status == "failed"
    if -250 < true_ahead < 1 and trip < 1:
        assert finding.status == "ok"


def test_the_limits_are_flowers_own() -> None:
    assert answer.MOST_AHEAD_SECONDS == SYSTEM_TIME_TOLERANCE
    assert answer.MOST_BEHIND_SECONDS == TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE


@pytest.mark.parametrize("text", ["yesterday", "", "Sun, 99 Nov 2026 15:08:56 GMT", "\x00"])
def test_a_date_that_is_none_is_no_crash(text: str) -> None:
    way = Way(server=Address(host="a", port=1), headers={"date": text})
    finding: Finding = answer.clock(way)
    assert finding.status == "warning"


@contextmanager
def real_superlink(files: Files, port: int) -> Iterator[None]:
    """Flower's own SuperLink over TLS on loopback, with nothing in it."""
    listening = uvicorn.Config(
        create_app(),
        host="127.0.0.1",
        port=port,
        ssl_certfile=files[0],
        ssl_keyfile=str(files[1]),
        log_config=None,
        ws="none",
    )
    superlink = uvicorn.Server(listening)
    thread = threading.Thread(target=superlink.run)
    thread.start()
    try:
        while not superlink.started:
            time.sleep(0.02)
        yield
    finally:
        superlink.should_exit = True
        thread.join()


def test_a_real_superlink_is_recognised(joined: JoinedSite, server: Files) -> None:
    with real_superlink(server, port_of(joined)):
        found = network(joined)
    assert {check.status for check in found.values()} == {"ok"}, found


def test_a_superlink_is_recognised_behind_the_gate_and_missed_when_it_is_gone(joined: JoinedSite) -> None:
    made, port = joined.certificate("both", ip=("127.0.0.1",)), unused_port()
    files = made.certificate_path, made.key
    settings = GateSettings(
        listen=(f"127.0.0.1:{port_of(joined)}",),
        superlink=f"127.0.0.1:{port}",
        certificate=files[0],
        key=files[1],
        authority=joined.desk.folder / "ca.pem",
    )
    with Gate(settings):
        gone = network(joined)
    with real_superlink(files, port), Gate(settings):
        found = network(joined)
    assert {check.status for check in found.values()} == {"ok"}, found
    assert codes(gone) == {"SuperLink": "FT853"}
    assert "passes nothing on (status 503)" in gone["SuperLink"].finding


def test_the_supernode_goes_the_same_way(
    joined: JoinedSite, server: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's own client follows the environment, and takes our authority as the doctor does."""
    proxy = Proxy()
    with (
        serving_tls(server, port=port_of(joined)) as heard,
        through(proxy, monkeypatch),
        FleetHttpClient.from_server_address(
            joined.address,
            insecure=False,
            root_certificates=(joined.folder / "ca.pem").read_bytes(),
            interceptors=[],
        ) as client,
        pytest.raises(httpx.HTTPStatusError, match="401"),
    ):
        client.PullMessages(PullMessagesRequest())
    assert proxy.asked == [f"CONNECT {joined.address} HTTP/1.1"]
    assert heard[0].startswith(f"POST {ASKED} HTTP/1.1\r\n")


@given(text=st.text(max_size=80) | st.binary(max_size=80).map(lambda raw: raw.decode("latin-1")))
def test_no_header_makes_a_check_crash(text: str) -> None:
    headers = dict.fromkeys(("date", "content-type", "server", "proxy-authenticate"), text)
    nowhere = Address(host="127.0.0.1", port=1)
    way = Way(server=nowhere, first=Address(host="b", port=2), stage="tunnel")
    way.status, way.headers, way.tunnel = 200, headers, (407, headers)
    for finding in (answer.clock(way), answer.superlink(way), *reaching.proxy(way)):
        assert finding.text.isprintable()


@settings(max_examples=50)
@given(raw=st.binary(max_size=200), cut=st.integers(0, 800), flip=st.integers(0, 800))
def test_no_certificate_makes_a_check_crash(shown_der: bytes, raw: bytes, cut: int, flip: int) -> None:
    damaged = bytearray(shown_der)
    damaged[flip % len(damaged)] ^= 0x55
    authority = ssl.DER_cert_to_PEM_cert(shown_der).encode()
    for der in (raw, shown_der[:cut], bytes(damaged), shown_der):
        shown = parsed(der)
        way = Way(server=Address(host="localhost", port=1), stage="tls", tls_version="TLSv1.3")
        findings = list(certificate.judged(way, shown, parse_certificate(authority), NOW))
        assert findings
        assert all(finding.text.isprintable() for finding in findings)


@pytest.fixture(scope="module")
def shown_der() -> bytes:
    key = new_key()
    made = server_certificate(
        key.public_key(),
        "hub",
        ServerNames(dns=("localhost",)),
        authority=authority_certificate(key, "test", days=9, now=NOW),
        authority_key=key,
        days=9,
        now=NOW,
    )
    return made.public_bytes(Encoding.DER)
