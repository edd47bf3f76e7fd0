"""What answers: how its clock compares with this machine's, and whether it is a SuperLink.

Flower's SuperLink refuses a request that is signed more than 5 s ahead of its own clock or 305 s behind it
(``flwr/superlink/routers/fleet/node_auth.py``). The answer's ``Date`` says what time it is there: it leaves
out fractions of a second, and uvicorn renews it once a second, so it is up to two seconds old.
"""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import Final

from fedtune.secagg.fields import printable
from fedtune.site.checkup.route import ASKED, Way
from fedtune.site.findings import Finding, failed, ok, warning

__all__ = ["MOST_AHEAD_SECONDS", "MOST_BEHIND_SECONDS", "clock", "superlink"]

MOST_AHEAD_SECONDS: Final = 5
MOST_BEHIND_SECONDS: Final = 305
_DATE_AGE_SECONDS: Final = 2.0
_CLOSE_AHEAD_SECONDS: Final = MOST_AHEAD_SECONDS - 1.5
_CLOSE_BEHIND_SECONDS: Final = MOST_BEHIND_SECONDS - 30.0
_FIX: Final = "let a time service such as systemd-timesyncd or chrony set the clock: timedatectl set-ntp true"


def clock(way: Way) -> Finding:
    """How far this machine's clock is from the server's.

    The server wrote its date at some moment between question and answer, so this clock is ahead of it by at
    least ``sent - (date + 2 s)`` and at most ``received - date``. The middle of the two is judged.
    """
    try:
        date = parsedate_to_datetime(way.headers["date"]).timestamp()
    except (KeyError, ValueError, TypeError, OverflowError):
        return warning("the server's answer has no date to compare with", fix=_FIX)
    least, most = way.sent - date - _DATE_AGE_SECONDS, way.received - date
    ahead, give_or_take = (least + most) / 2, (most - least) / 2
    direction = "ahead of" if ahead > 0 else "behind"
    said = f"{abs(ahead):,.1f} s {direction} the server's (± {give_or_take:.1f} s)"
    limits = f"Flower refuses {MOST_AHEAD_SECONDS} s ahead and {MOST_BEHIND_SECONDS} s behind"
    if not -MOST_BEHIND_SECONDS < ahead < MOST_AHEAD_SECONDS:
        return failed("FT852", f"this machine's clock is {said}; {limits}", fix=_FIX)
    if not -_CLOSE_BEHIND_SECONDS < ahead < _CLOSE_AHEAD_SECONDS:
        return warning(f"this machine's clock is {said}, close to the limit; {limits}", fix=_FIX)
    return ok(f"as the server's, to within {abs(ahead) + give_or_take:.1f} s; {limits}")


def superlink(way: Way) -> Finding:
    """Whether a SuperLink answers, directly or behind its gate."""
    if way.status is None:
        return failed(
            "FT853",
            f"{way.server} does not answer as a web server does: {way.reason()}",
            fix="ask the coordinator whether `fedtune server start` serves this port",
        )
    kind = way.headers.get("content-type", "").partition(";")[0].strip().lower()
    if way.status == 401 and kind == "application/json":
        return ok(f"a SuperLink answers at {way.server}, and asks who calls")
    if way.status in (502, 503, 504):
        return failed(
            "FT853",
            f"a gate answers at {way.server} and passes nothing on (status {way.status}): no SuperLink runs "
            "behind it, or too much was asked from this network in a short time",
            fix="run the doctor again in a minute; then ask the coordinator for `fedtune server status`",
        )
    software = printable(way.headers.get("server", "")[:80])
    return failed(
        "FT853",
        f"what answers at {way.server} is no SuperLink: status {way.status} for {ASKED}"
        + (f", from {software}" if software else ""),
        fix="ask the coordinator whether the address is right and `fedtune server start` serves it",
    )
