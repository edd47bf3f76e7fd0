"""Each code of the doctor of a site has a page, and the message on it is the one that is printed."""

from __future__ import annotations

import dataclasses
import re
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from support.site_folder import federation_config, write_rows
from support.wayside import Inspector

import fedtune.site.checkup
from fedtune.errors import Problem
from fedtune.keys.authority import make_authority
from fedtune.keys.certificates import ServerNames, parse_certificate, server_certificate
from fedtune.keys.private import new_key, read_pem_key
from fedtune.site.checkup import answer, certificate, reaching
from fedtune.site.checkup.material import Material
from fedtune.site.checkup.model import BaseModel
from fedtune.site.checkup.route import Address, Stage, Way
from fedtune.site.checkup.rows import SiteRows
from fedtune.site.findings import Finding
from fedtune.site.folder import SiteFolder
from fedtune.site.policy_file import example_path, parse_policy
from fedtune.site.policy_schema import SitePolicy

PAGES = Path(__file__).parents[3] / "docs" / "reference" / "errors"
SERVER = Address(host="fedtune.invalid", port=9092)
PROXY = Address(host="proxy.invalid", port=3128)
THEN = datetime(2026, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def any_policy(*files: str) -> SitePolicy:
    policy = parse_policy(example_path().read_text(encoding="utf-8"), where="site.yaml")
    return dataclasses.replace(policy, data=dataclasses.replace(policy.data, files=files))


def unknown_name(*_: object, **__: object) -> None:
    raise socket.gaierror(-2, "Name or service not known")


def way(stage: Stage, *, error: Exception | None = None, proxy: bool = False) -> Way:
    return Way(server=SERVER, first=PROXY if proxy else SERVER, stage=stage, error=error)


def asked_of_proxy(status: int) -> Finding:
    called = way("tunnel", proxy=True)
    called.tunnel = status, {"proxy-authenticate": 'Basic realm="clinic"'}
    return next(reaching.proxy(called))


def authority(folder: str) -> x509.Certificate:
    return make_authority(Path(folder), name="Lungs federation", now=THEN).certificate


def shown(folder: str, host: str, days: int) -> x509.Certificate:
    vouching = authority(folder)
    return server_certificate(
        new_key().public_key(),
        "hub",
        ServerNames(dns=(host,)),
        authority=vouching,
        authority_key=read_pem_key(Path(folder) / "ca.key", "the authority's key"),
        days=days,
        now=THEN,
    )


def judged(certificate_shown: x509.Certificate | None, folder: str = "known") -> Finding:
    known = Path(folder) / "ca.pem"
    trusted = parse_certificate(known.read_bytes()) if known.exists() else authority(folder)
    refused = OSError(1, "wrong version number")
    return next(certificate.judged(way("tls", error=refused), certificate_shown, trusted, NOW))


def inspected() -> Finding:
    pem, _ = Inspector(Path("gateway")).files(SERVER.host)
    return judged(parse_certificate(pem.read_bytes()))


def late_clock() -> Finding:
    called = way("done")
    called.headers, called.sent, called.received = {"date": "Sun, 01 Mar 2026 00:00:00 GMT"}, 0.0, 0.0
    called.sent = called.received = NOW.timestamp() + 9.0
    return answer.clock(called)


def another_server() -> Finding:
    called = way("done")
    called.status, called.headers = 404, {"server": "nginx", "content-type": "text/html"}
    return answer.superlink(called)


def other_model() -> Finding:
    config = federation_config(Path("model"))
    base = BaseModel(name="model", model=config.model, config=config, found=config.model)
    return base.allowed(any_policy())


def bad_rows() -> Finding:
    rows = write_rows(Path("letters.jsonl"))
    rows.write_text(rows.read_text().replace("It is of grade 1.", ""), encoding="utf-8")
    config = federation_config(Path("model"))
    return next(SiteRows(config=config, policy=any_policy(str(rows)), site="ear").file(str(rows)))


RAISE: dict[str, tuple[str, Callable[[], Finding]]] = {
    "FT840": ("keys", lambda: next(Material(folder=SiteFolder(Path("site")), now=NOW).keys())),
    "FT841": ("roster", lambda: Material(folder=SiteFolder(Path("site")), now=NOW).pinned(secure=True)),
    "FT842": ("name of the server", lambda: reaching.resolution(way("connection"))),
    "FT843": (
        "connection",
        lambda: reaching.connection(
            way("connection", error=ConnectionRefusedError(111, "Connection refused"))
        ),
    ),
    "FT844": (
        "connection",
        lambda: reaching.connection(way("connection", proxy=True, error=TimeoutError("timed out"))),
    ),
    "FT845": ("proxy", lambda: asked_of_proxy(407)),
    "FT846": ("proxy", lambda: asked_of_proxy(403)),
    "FT847": ("certificate", inspected),
    "FT848": ("certificate", lambda: judged(shown("other", SERVER.host, 365))),
    "FT849": ("certificate", lambda: judged(shown("known", "hub.example.org", 365))),
    "FT850": ("certificate", lambda: judged(shown("known", SERVER.host, 30))),
    "FT851": ("certificate", lambda: judged(None)),
    "FT852": ("clock", late_clock),
    "FT853": ("SuperLink", another_server),
    "FT854": ("hash of the model", other_model),
    "FT855": ("data letters.jsonl", bad_rows),
}


def printed(code: str) -> str:
    """The finding in three lines, without what differs from one time to the next."""
    name, find = RAISE[code]
    finding = find()
    assert (finding.status, finding.code) == ("failed", code)
    assert finding.fix is not None
    text = str(Problem(code=code, what=finding.text, where=name, fix=finding.fix))
    text = re.sub(r"\b[a-z2-7]{4}(-[a-z2-7]{4}){7}\b", "abcd-efgh-ijkl-mnop-qrst-uvwx-yz23-4567", text)
    return re.sub(r"computed in [0-9.]+ s", "computed in 0.9 s", text)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fedtune.models.base_hash.base_hash", lambda _: "cf5db8d7" * 8)
    monkeypatch.setattr(socket, "getaddrinfo", unknown_name)


@pytest.mark.parametrize("code", RAISE)
def test_the_page_of_a_finding_shows_the_message_that_is_printed(code: str) -> None:
    message = printed(code)
    page = (PAGES / f"{code}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {code}: ")
    assert "\n## What to do\n" in page
    assert "\n".join(f"    {line}" for line in message.splitlines()) in page


def test_every_code_of_the_package_is_on_this_list() -> None:
    sources = Path(fedtune.site.checkup.__file__).parent.glob("*.py")
    given = {code for source in sources for code in re.findall(r'"(FT8[45]\d)"', source.read_text())}
    assert given == set(RAISE)
    assert {page.stem for page in [*PAGES.glob("FT84*.md"), *PAGES.glob("FT85*.md")]} == set(RAISE)
