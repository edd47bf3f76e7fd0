"""The command line: a parser, and a table of where each command lives.

Nothing heavy is imported here: a command's module, and with it torch or hydra, is imported when it runs.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeAlias

from fedtune import __version__
from fedtune.errors import FedtuneError

__all__ = ["EXAMPLES", "build_parser", "main"]

EXAMPLES = {
    "simulate": ("run a federation on this machine", "fedtune simulate experiment=demo"),
    "doctor": ("is this machine ready? every problem with its fix", "fedtune doctor"),
    "data": ("check a dataset and show what the model will see", "fedtune data check rows.jsonl"),
    "estimate": ("memory and traffic, before anything is loaded", "fedtune estimate peft.rank=32"),
    "evaluate": ("held-out loss of a run's adapter at every site", "fedtune evaluate runs/demo"),
    "chat": ("talk to the model that a run made", "fedtune chat runs/demo"),
    "export": ("copy a run's adapter, or merge it into the base", "fedtune export runs/demo --merged out"),
    "report": ("what a run gave: a summary, and its report drawn anew", "fedtune report runs/demo"),
    "keys": ("a site's identity, and the roster that sites agree on", "fedtune keys identity site.pem"),
    "bench": ("the measurements that the README quotes", "fedtune bench startup"),
    "completion": ("completion for your shell", "fedtune completion bash"),
    "version": ("print the version", "fedtune version"),
}
"""Command -> (what it does, an example)."""

_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_EPILOG = "The reference of all commands and exit codes is docs/reference/command-line.md."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments; those of the process unless given.

    Returns:
        The exit code: 0, that of a :class:`FedtuneError`, 1 for an unexpected error, 130 after Ctrl-C. A
        command line that cannot be parsed ends the process with 2.
    """
    arguments = _parse(argv)
    try:
        return _run(arguments)
    except FedtuneError as error:
        from fedtune.commands.reporting import report_problems  # noqa: PLC0415

        report_problems(error, as_json=_as_json(arguments))
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped\n")
        return 130
    except BrokenPipeError:
        # The reader of stdout, such as `head`, is gone. Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if os.environ.get("FEDTUNE_DEBUG") == "1":
            raise
        from fedtune.commands.reporting import report_crash  # noqa: PLC0415

        report_crash(error, as_json=_as_json(arguments))
        return 1


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="fedtune",
        description="Many sites fine-tune one quantized language model together; only LoRA deltas travel.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"fedtune {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    simulate = _add(commands, "simulate")
    simulate.add_argument("-m", "--multirun", action="store_true", help="one job for each of several values")
    _json(simulate)
    _overrides(simulate)

    _json(_add(commands, "doctor"))

    data = _add(commands, "data")
    check = _below(data, "data_command").add_parser(
        "check",
        help="every problem of a file, and what the model will see of it",
        epilog="Example: fedtune data check rows.csv 'data.columns={output: answer}'",
    )
    check.add_argument(
        "file", metavar="FILE", help="a .jsonl, .json, .csv or .parquet file, or a dataset: hpo"
    )
    check.add_argument("--show", type=_count, default=3, metavar="N", help="rows to show (default: 3)")
    _json(check)
    _overrides(check)

    estimate = _add(commands, "estimate")
    _json(estimate)
    _overrides(estimate)

    evaluate = _add(commands, "evaluate")
    _run_argument(evaluate)
    _json(evaluate)

    chat = _add(commands, "chat")
    _run_argument(chat)
    chat.add_argument("--prompt", metavar="TEXT", help="answer this and leave")
    chat.add_argument("--base", action="store_true", help="without the adapter: the model as it was before")
    chat.add_argument("--max-new-tokens", type=_count, default=256, metavar="N", help="longest answer (256)")
    _json(chat)

    export = _add(commands, "export")
    _run_argument(export)
    export.add_argument("folder", metavar="FOLDER", help="where to write: new, or empty")
    export.add_argument("--merged", action="store_true", help="one model, the adapter added to the base")
    _json(export)

    report = _add(commands, "report")
    _run_argument(report)
    _json(report)

    _keys(_below(_add(commands, "keys"), "keys_command"))
    _bench(_below(_add(commands, "bench"), "bench_command"))

    completion = _add(commands, "completion")
    completion.add_argument("shell", choices=["bash", "zsh", "tcsh"], help="your shell")

    _json(_add(commands, "version"))
    return parser


def _keys(commands: _Commands) -> None:
    identity = commands.add_parser("identity", help="make a site's identity, once; print its fingerprint")
    identity.add_argument("file", metavar="FILE", help="the private key: a new file")
    identity.add_argument("--show", action="store_true", help="print what an existing file is")
    _json(identity)

    roster = commands.add_parser("roster", help="who belongs to the federation, and who believes it")
    _roster(_below(roster, "roster_command"))

    spent = commands.add_parser("spent", help="the journal of opened updates of this site")
    spent.add_argument("journal", metavar="JOURNAL", help="the site's journal file")
    spent.add_argument("--release", type=_count, metavar="N", help="let entry N be opened once more")
    spent.add_argument("--operator", metavar="NAME", help="who releases; kept in the journal")
    spent.add_argument("--reason", metavar="TEXT", help="why; kept in the journal")
    _json(spent)


def _roster(commands: _Commands) -> None:
    entry = commands.add_parser("entry", help="a site's own application for the roster, signed by it")
    _identity(entry)
    _federation(entry)
    entry.add_argument("--site", required=True, metavar="NAME", help="the site's name, for people")
    weight = entry.add_mutually_exclusive_group()
    weight.add_argument("--weight", type=_count, default=1, metavar="W", help="a power of two (default: 1)")
    weight.add_argument(
        "--weight-from-examples", type=_count, metavar="N", help="the power of two below N; N is not written"
    )
    entry.add_argument("--group", default="", metavar="G", help="sites of a group join and leave together")
    entry.add_argument("--out", required=True, metavar="ENTRY", help="where to write the entry")
    _json(entry)

    make = commands.add_parser("make", help="the coordinator's: entries of all sites into the next version")
    make.add_argument("entries", nargs="+", metavar="ENTRY", help="the entry of every site that is to belong")
    _federation(make)
    make.add_argument("--after", metavar="ROSTER", help="the version before; without it this is version 1")
    make.add_argument("--out", required=True, metavar="ROSTER", help="where to write the version: a new file")
    _json(make)

    show = commands.add_parser("show", help="what a roster file says; nothing is accepted")
    show.add_argument("roster", metavar="ROSTER", help="a roster file")
    _json(show)

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
    _json(accept)

    countersign = commands.add_parser("countersign", help="vouch for the version after the accepted one")
    _identity(countersign)
    _pin(countersign)
    countersign.add_argument("roster", metavar="ROSTER", help="the next version")
    countersign.add_argument("--out", metavar="ROSTER", help="where to write it (default: the same file)")
    _json(countersign)


def _bench(commands: _Commands) -> None:
    startup = commands.add_parser("startup", help="start-up times, as medians of fresh processes")
    startup.add_argument(
        "--repeats", type=_count, default=10, metavar="N", help="fresh processes (default: 10)"
    )
    _json(startup)

    secagg = commands.add_parser("secagg", help="secure aggregation beside Flower's SecAgg+")
    secagg.add_argument("--scale", action="store_true", help="also 1,000 clients: some minutes more")
    _json(secagg)


def _below(parser: argparse.ArgumentParser, dest: str) -> _Commands:
    return parser.add_subparsers(dest=dest, metavar="COMMAND", required=True)


def _identity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--identity", required=True, metavar="FILE", help="the site's private key")


def _federation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--federation", required=True, metavar="NAME", help="the federation's name")


def _pin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pin", required=True, metavar="PIN", help="the site's file of the accepted version")


def _add(commands: _Commands, name: str) -> argparse.ArgumentParser:
    purpose, example = EXAMPLES[name]
    return commands.add_parser(
        name, help=purpose, description=purpose[0].upper() + purpose[1:] + ".", epilog=f"Example: {example}"
    )


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object to stdout")


def _overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="keys and groups of the configuration, see docs/reference/configuration.md",
    )


def _run_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of a run, such as runs/demo")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1")
    return int(text)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse ends a list of overrides at the first option: `simulate seed=0 --json peft.rank=4`.
    if rest and (not hasattr(arguments, "overrides") or any(text.startswith("-") for text in rest)):
        _unknown_arguments(parser, rest)
    if rest:
        arguments.overrides += rest
    return arguments


def _unknown_arguments(parser: argparse.ArgumentParser, rest: Sequence[str]) -> NoReturn:
    parser.error(f"unrecognized arguments: {' '.join(rest)}")


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command is None:
        width = max(len(example) for _, example in EXAMPLES.values())
        lines = [f"  {example:<{width}}  {purpose}" for purpose, example in EXAMPLES.values()]
        print("fedtune", __version__, "\n\n" + "\n".join(lines) + "\n\nMore: fedtune COMMAND --help")
        return 0
    if arguments.command == "version":
        print(f'{{"version": "{__version__}"}}' if arguments.json else __version__)
        return 0
    if arguments.command == "completion":
        shtab = importlib.import_module("shtab")
        print(shtab.complete(build_parser(), shell=arguments.shell))
        return 0
    importlib.import_module("fedtune.commands.reporting").show_log()
    run: Callable[[argparse.Namespace], int] = importlib.import_module(
        f"fedtune.commands.{arguments.command}"
    ).run
    return run(arguments)


def _as_json(arguments: argparse.Namespace) -> bool:
    return bool(getattr(arguments, "json", False))


if __name__ == "__main__":
    sys.exit(main())
