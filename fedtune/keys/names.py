"""Names that may stand in a file name, a certificate or a log: few characters, one form for each."""

from __future__ import annotations

import ipaddress
import re
from typing import Final, TypeAlias

from fedtune.secagg.fields import printable

__all__ = ["IPAddress", "address_flaws", "days_flaws", "dns_flaws", "ip_flaws", "name_flaws", "normal_dns"]

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_DAYS: Final = 36_500
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")


def name_flaws(name: str, kind: str) -> list[str]:
    """What is wrong with the name of a site or server, which is also the beginning of a file name."""
    if _NAME.fullmatch(name):
        return []
    return [
        f"the {kind} is {printable(name)!r}: 1 to 63 letters, digits, '.', '_' and '-' are allowed, "
        "with a letter or digit at each end"
    ]


def normal_dns(text: str) -> str:
    """A host name as it is compared: lower case."""
    return text.lower()


def dns_flaws(text: str) -> list[str]:
    """What is wrong with a host name: of ASCII letters, digits and hyphens, no wildcard, no IP address."""
    host, labels = normal_dns(text), normal_dns(text).split(".")
    if len(host) <= 253 and all(_LABEL.fullmatch(label) for label in labels) and not labels[-1].isdecimal():
        return []
    what = f"{printable(text)!r} is no host name such as fedtune.example.org"
    if not text.isascii():
        what += "; a name of other letters is written in its xn-- form"
    return [what]


def ip_flaws(text: str) -> list[str]:
    """What is wrong with an IP address in its usual form."""
    try:
        same = str(ipaddress.ip_address(text)) == text.lower() and "%" not in text
    except ValueError:
        same = False
    return [] if same else [f"{printable(text)!r} is no IP address such as 192.0.2.7 or 2001:db8::7"]


def address_flaws(text: str) -> list[str]:
    """What is wrong with a server's ``host:port``; an IPv6 address stands in brackets."""
    host, _, port = text.rpartition(":")
    right_port = _PORT.fullmatch(port) is not None and int(port) < 2**16
    if host.startswith("[") and host.endswith("]"):
        right_host = ":" in host and not ip_flaws(host[1:-1])
    else:
        right_host = ":" not in host and not (dns_flaws(host) and ip_flaws(host))
    if right_host and right_port and text == text.lower():
        return []
    return [f"{printable(text)!r} is no address such as fedtune.example.org:9092, in lower case"]


def days_flaws(days: int) -> list[str]:
    """What is wrong with a number of days for which a certificate is to hold."""
    return [] if 1 <= days <= MAX_DAYS else [f"a validity is 1 to {MAX_DAYS} days, got {days}"]
