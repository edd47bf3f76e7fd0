"""The arguments of ``fedtune keys``."""

from __future__ import annotations

import argparse

from fedtune.commands.arguments import Commands, add_json, below, count

__all__ = ["add_keys"]


def add_keys(commands: Commands) -> None:
    """Add what stands below ``fedtune keys``."""
    _deployment(commands)
    identity = commands.add_parser("identity", help="make a site's identity, once; print its fingerprint")
    identity.add_argument("file", metavar="FILE", help="the private key: a new file")
    identity.add_argument("--show", action="store_true", help="print what an existing file is")
    add_json(identity)

    roster = commands.add_parser("roster", help="who belongs to the federation, and who believes it")
    _roster(below(roster, "roster_command"))

    spent = commands.add_parser("spent", help="the journal of opened updates of this site")
    spent.add_argument("journal", metavar="JOURNAL", help="the site's journal file")
    spent.add_argument("--release", type=count, metavar="N", help="let entry N be opened once more")
    spent.add_argument("--operator", metavar="NAME", help="who releases; kept in the journal")
    spent.add_argument("--reason", metavar="TEXT", help="why; kept in the journal")
    add_json(spent)


def _deployment(commands: Commands) -> None:
    ca = commands.add_parser("ca", help="the coordinator's: make an authority and the coordinator's identity")
    ca.add_argument("folder", metavar="FOLDER", help="the coordinator's folder: new, or without such files")
    ca.add_argument("--name", default="fedtune authority", metavar="TEXT", help="the authority's name")
    ca.add_argument("--days", type=count, metavar="N", help="how long it holds (default: 3650)")
    under = ca.add_mutually_exclusive_group()
    under.add_argument(
        "--passphrase", action="store_true", help="ask for a passphrase of the authority's key"
    )
    _passphrase_file(under)
    add_json(ca)

    server = commands.add_parser("server", help="the coordinator's: make a server's TLS key and certificate")
    server.add_argument("name", metavar="NAME", help="the server's name, and that of its files")
    _ca(server)
    server.add_argument("--dns", action="append", default=[], metavar="HOST", help="a host name; repeatable")
    server.add_argument("--ip", action="append", default=[], metavar="ADDRESS", help="an address; repeatable")
    server.add_argument("--days", type=count, metavar="N", help="how long it holds (default: 365)")
    server.add_argument("--out", required=True, metavar="FOLDER", help="where the two files are")
    server.add_argument("--renew", action="store_true", help="replace the certificate, and keep the key")
    _passphrase_file(server)
    add_json(server)

    client = commands.add_parser("client", help="a site's: make its keys, and a request to the coordinator")
    client.add_argument("name", metavar="NAME", help="the site's name")
    _federation(client)
    _declared(client)
    client.add_argument("--out", required=True, metavar="FOLDER", help="the site's folder")
    add_json(client)

    enrol = commands.add_parser("enrol", help="the coordinator's: answer requests with bundles")
    enrol.add_argument("requests", nargs="+", metavar="REQUEST", help="files that sites sent")
    _ca(enrol)
    _federation(enrol)
    enrol.add_argument("--server", required=True, metavar="HOST:PORT", help="where the sites connect")
    enrol.add_argument("--roster", metavar="ROSTER", help="a version of the roster to send along")
    enrol.add_argument("--out", required=True, metavar="FOLDER", help="where the bundles are written")
    add_json(enrol)

    join = commands.add_parser("join", help="a site's: believe the coordinator's bundle")
    join.add_argument("folder", metavar="FOLDER", help="the site's folder, with its keys and its request")
    join.add_argument("bundle", metavar="BUNDLE", help="the coordinator's answer")
    join.add_argument(
        "--fingerprint", metavar="TEXT", help="the coordinator's, as heard over another channel"
    )
    add_json(join)

    revoke = commands.add_parser("revoke", help="the coordinator's: remove a site")
    revoke.add_argument("name", metavar="NAME", help="the site's name")
    revoke.add_argument("--ca", metavar="FOLDER", help="the coordinator's folder: drop the site's node key")
    revoke.add_argument(
        "--roster", metavar="ROSTER", help="the newest version: make the next without the site"
    )
    revoke.add_argument("--out", metavar="ROSTER", help="where to write that version: a new file")
    add_json(revoke)

    show = commands.add_parser("show", help="what files of keys are, until when they hold, what is wrong")
    show.add_argument("paths", nargs="+", metavar="PATH", help="a file, or a coordinator's or site's folder")
    add_json(show)


def _roster(commands: Commands) -> None:
    entry = commands.add_parser("entry", help="a site's own application for the roster, signed by it")
    _identity(entry)
    _federation(entry)
    entry.add_argument("--site", required=True, metavar="NAME", help="the site's name, for people")
    _declared(entry)
    entry.add_argument("--out", required=True, metavar="ENTRY", help="where to write the entry")
    add_json(entry)

    make = commands.add_parser("make", help="the coordinator's: entries of all sites into the next version")
    make.add_argument(
        "entries", nargs="+", metavar="ENTRY", help="the entry or request of every site that is to belong"
    )
    _federation(make)
    make.add_argument("--after", metavar="ROSTER", help="the version before; without it this is version 1")
    make.add_argument("--out", required=True, metavar="ROSTER", help="where to write the version: a new file")
    add_json(make)

    show = commands.add_parser("show", help="what a roster file says; nothing is accepted")
    show.add_argument("roster", metavar="ROSTER", help="a roster file")
    add_json(show)

    accept = commands.add_parser("accept", help="let this site believe a version from now on")
    _pin(accept)
    accept.add_argument(
        "rosters", nargs="+", metavar="ROSTER", help="the versions since the accepted one, oldest first"
    )
    by = accept.add_mutually_exclusive_group()
    by.add_argument("--fingerprint", metavar="TEXT", help="the roster's, as heard over another channel")
    by.add_argument(
        "--quorum", action="store_true", help="on the countersignatures of members of the version before"
    )
    add_json(accept)

    countersign = commands.add_parser("countersign", help="vouch for the version after the accepted one")
    _identity(countersign)
    _pin(countersign)
    countersign.add_argument("roster", metavar="ROSTER", help="the next version")
    countersign.add_argument("--out", metavar="ROSTER", help="where to write it (default: the same file)")
    add_json(countersign)


def _declared(parser: argparse.ArgumentParser) -> None:
    weight = parser.add_mutually_exclusive_group()
    weight.add_argument("--weight", type=count, default=1, metavar="W", help="a power of two (default: 1)")
    weight.add_argument(
        "--weight-from-examples", type=count, metavar="N", help="the power of two below N; N is not written"
    )
    parser.add_argument("--group", default="", metavar="G", help="sites of a group join and leave together")


def _identity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--identity", required=True, metavar="FILE", help="the site's private key")


def _federation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--federation", required=True, metavar="NAME", help="the federation's name")


def _pin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pin", required=True, metavar="PIN", help="the site's file of the accepted version")


def _ca(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ca", required=True, metavar="FOLDER", help="the coordinator's folder")


def _passphrase_file(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--passphrase-file", metavar="FILE", help="its first line is the passphrase of the authority's key"
    )
