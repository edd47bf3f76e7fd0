"""A full disk, a certificate that has ended, a wrong authority: the rest goes on, and the cause is named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from support.cli_federation import CliFederation, tiny_run

from fedtune.coordinator.folder import CoordinatorFolder
from fedtune.keys.authority import AUTHORITY_CERTIFICATE, make_authority, read_authority_key, read_certificate
from fedtune.keys.certificates import names_of, server_certificate, to_pem, utc_now
from fedtune.observability.events import ClientFailed, RoundAggregated
from fedtune.secagg.identity import Identity
from fedtune.site.audit import verify_audit

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PLAIN = ("secagg=off", "federation.metrics=[held_out_loss]", "aggregation.weighting=uniform")
THREE = tiny_run(
    federation__rounds=1,
    federation__min_replies=3,
    federation__round_timeout_seconds=60,
    federation__join_timeout_seconds=20,
)
ALL = tiny_run(federation__rounds=1, federation__join_timeout_seconds=240)
CONNECTS_SECONDS = 240.0


def without(federation: CliFederation, run: str, site: str) -> set[str]:
    """Do a run in which a site is missing; returns the codes under which it is named."""
    assert federation.run(f"name={run}", *PLAIN, *THREE)["status"] == "completed"
    events = federation.events(run)
    (aggregated,) = (event for event in events if isinstance(event, RoundAggregated))
    assert aggregated.clients == tuple(sorted(set(federation.sites) - {site}))
    failures = [event for event in events if isinstance(event, ClientFailed)]
    assert {failure.client for failure in failures} == {site}
    return {failure.code for failure in failures}


def with_all(federation: CliFederation, run: str) -> None:
    federation.wait("the sites", federation.all_connected, seconds=CONNECTS_SECONDS)
    assert federation.run(f"name={run}", *PLAIN, *ALL, seconds=500)["status"] == "completed"
    (aggregated,) = (event for event in federation.events(run) if isinstance(event, RoundAggregated))
    assert aggregated.clients == tuple(sorted(federation.sites))


def fedtune_ends(*arguments: str | Path) -> tuple[int, str, str]:
    """Run a command to its end; returns its exit code, and what it wrote to stdout and to stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "fedtune", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def of_the_day_before_yesterday(folder: CoordinatorFolder) -> bytes:
    """Return a certificate of the server's key and names that the authority signed, and that has ended."""
    old = read_certificate(folder.certificate, "the server's certificate")
    authority = read_certificate(folder.authority, "the authority's certificate")
    key = old.public_key()
    assert isinstance(key, EllipticCurvePublicKey)
    ended = server_certificate(
        key,
        "server",
        names_of(old),
        authority=authority,
        authority_key=read_authority_key(folder.path, authority, lambda: b""),
        days=1,
        now=utc_now() - timedelta(days=2),
    )
    return to_pem(ended)


@contextmanager
def files_end_at(process: psutil.Process, size: int) -> Iterator[None]:
    """Let a process write no file beyond this size: for it the disk is full, and for nobody else."""
    soft, hard = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        process.rlimit(psutil.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.skipif(sys.platform != "linux", reason="another process's limits are set on Linux alone")
def test_a_full_disk_at_a_site_is_named_and_the_others_round_counts(federation: CliFederation) -> None:
    """What cannot be written to the audit log does not leave; with space again the site takes part again."""
    federation.wait("the sites", federation.all_connected, seconds=CONNECTS_SECONDS)
    ear = federation.sites["ear"]
    before = ear.audit_log.read_bytes()
    with files_end_at(federation.process("ear"), len(before)):
        codes = without(federation, "full", "ear")
    assert codes
    assert codes <= {"FT605", "FT606", "FT609", "FT612", "FT830"}
    assert ear.audit_log.read_bytes() == before
    with_all(federation, "freed")
    assert verify_audit(ear.audit_log, Identity.load(ear.audit_key).public).intact


def test_a_site_that_trusts_another_authority_stays_away(federation: CliFederation, tmp_path: Path) -> None:
    """It connects to nobody whom its authority did not sign, says so, and nobody waits for it."""
    federation.wait("the sites", federation.all_connected, seconds=CONNECTS_SECONDS)
    eye = federation.sites["eye"]
    right = eye.authority.read_bytes()
    make_authority(tmp_path / "other", name="other", now=utc_now(), days=30, passphrase=None)
    federation.kill("eye")
    eye.authority.write_bytes((tmp_path / "other" / AUTHORITY_CERTIFICATE).read_bytes())
    federation.start_site("eye")
    try:
        # FT605 as well, where Flower still takes the killed client for connected when the run begins.
        assert without(federation, "stranger", "eye") | {"FT605"} == {"FT605", "FT612"}
        code, found, _ = fedtune_ends("client", "doctor", eye.path, "--json")
        assert code != 0
        assert {"FT636", "FT848"} <= {check["code"] for check in json.loads(found)["checks"]}
    finally:
        federation.kill("eye")
        eye.authority.write_bytes(right)
        federation.start_site("eye")
    with_all(federation, "trusting")


def test_a_server_does_not_start_with_a_certificate_that_has_ended(federation: CliFederation) -> None:
    """It says which and what to do; with a new one all sites come back by themselves."""
    federation.wait("the sites", federation.all_connected, seconds=CONNECTS_SECONDS)
    folder = federation.coordinator
    good = folder.certificate.read_bytes()
    federation.kill("server")
    try:
        folder.certificate.write_bytes(of_the_day_before_yesterday(folder))
        code, _, words = fedtune_ends("server", "start", folder.path)
        assert code != 0
        assert "FT631: the certificate ended on" in words
        assert str(folder.certificate) in words
    finally:
        folder.certificate.write_bytes(good)
        federation.start_server()
    with_all(federation, "renewed")
