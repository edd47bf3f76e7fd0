"""The command line: a parser, and a table of where each command lives.

Nothing heavy is imported here: a command's module, and with it torch or hydra, is imported when it runs.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from fedtune import __version__
from fedtune.commands.arguments import Commands, add_json, below, count, overrides
from fedtune.commands.client_arguments import add_client
from fedtune.commands.keys_arguments import add_keys
from fedtune.commands.server_arguments import add_server
from fedtune.errors import FedtuneError

__all__ = ["EXAMPLES", "build_parser", "main"]

EXAMPLES = {
    "simulate": ("run a federation on this machine", "fedtune simulate experiment=demo"),
    "doctor": ("is this machine ready? every problem with its fix", "fedtune doctor"),
    "data": ("check a dataset and show what the model will see", "fedtune data check rows.jsonl"),
    "estimate": ("memory and traffic, before anything is loaded", "fedtune estimate peft.rank=32"),
    "explain": (
        "what an aggregation needs and costs, and whether your settings allow it",
        "fedtune explain aggregation=svd secagg=on",
    ),
    "evaluate": ("held-out loss of a run's adapter at every site", "fedtune evaluate runs/demo"),
    "chat": ("talk to the model that a run made", "fedtune chat runs/demo"),
    "export": ("copy a run's adapter, or merge it into the base", "fedtune export runs/demo --merged out"),
    "report": ("what a run gave: a summary, and its report drawn anew", "fedtune report runs/demo"),
    "server": ("the coordinator: let sites connect, run federations", "fedtune server status coordinator"),
    "client": ("a site: connect, decide what may be done, see what left", "fedtune client status site"),
    "keys": (
        "keys, certificates and enrolment, and the roster that sites agree on",
        "fedtune keys show site",
    ),
    "bench": ("the measurements that the README quotes", "fedtune bench startup"),
    "completion": ("completion for your shell", "fedtune completion bash"),
    "version": ("print the version", "fedtune version"),
}
"""Command -> (what it does, an example)."""

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
    add_json(simulate)
    overrides(simulate)

    add_json(_add(commands, "doctor"))

    _data(below(_add(commands, "data"), "data_command"))

    estimate = _add(commands, "estimate")
    add_json(estimate)
    overrides(estimate)

    explain = _add(commands, "explain")
    add_json(explain)
    overrides(explain)

    evaluate = _add(commands, "evaluate")
    _run_argument(evaluate)
    add_json(evaluate)

    chat = _add(commands, "chat")
    _run_argument(chat)
    chat.add_argument("--prompt", metavar="TEXT", help="answer this and leave")
    chat.add_argument("--base", action="store_true", help="without the adapter: the model as it was before")
    chat.add_argument("--max-new-tokens", type=count, default=256, metavar="N", help="longest answer (256)")
    add_json(chat)

    export = _add(commands, "export")
    _run_argument(export)
    export.add_argument("folder", metavar="FOLDER", help="where to write: new, or empty")
    export.add_argument("--merged", action="store_true", help="one model, the adapter added to the base")
    add_json(export)

    report = _add(commands, "report")
    _run_argument(report)
    add_json(report)

    add_server(below(_add(commands, "server"), "server_command"))
    add_client(below(_add(commands, "client"), "client_command"))
    add_keys(below(_add(commands, "keys"), "keys_command"))
    _bench(below(_add(commands, "bench"), "bench_command"))

    completion = _add(commands, "completion")
    completion.add_argument("shell", choices=["bash", "zsh", "tcsh"], help="your shell")

    add_json(_add(commands, "version"))
    return parser


def _data(commands: Commands) -> None:
    check = commands.add_parser(
        "check",
        help="every problem of a file, and what the model will see of it",
        epilog="Example: fedtune data check rows.csv 'data.columns={output: answer}'",
    )
    split = commands.add_parser(
        "split",
        help="one file of rows for each value of a column",
        epilog="Example: fedtune data split hpo --column site --out rows",
    )
    for each in (check, split):
        each.add_argument(
            "file", metavar="FILE", help="a .jsonl, .json, .csv or .parquet file, or a dataset: hpo"
        )
    check.add_argument("--show", type=count, default=3, metavar="N", help="rows to show (default: 3)")
    split.add_argument("--column", required=True, metavar="COLUMN", help="the column to split by")
    split.add_argument("--out", required=True, metavar="FOLDER", help="where to write: new, or empty")
    for each in (check, split):
        add_json(each)
        overrides(each)


def _bench(commands: Commands) -> None:
    startup = commands.add_parser("startup", help="start-up times, as medians of fresh processes")
    startup.add_argument(
        "--repeats", type=count, default=10, metavar="N", help="fresh processes (default: 10)"
    )
    add_json(startup)

    deployment = commands.add_parser(
        "deployment", help="a server and four sites as processes: what a round costs beyond training"
    )
    add_json(deployment)

    secagg = commands.add_parser("secagg", help="secure aggregation beside Flower's SecAgg+")
    secagg.add_argument("--scale", action="store_true", help="also 1,000 clients: some minutes more")
    add_json(secagg)

    aggregation = commands.add_parser("aggregation", help="decompositions, exactness, memory and traffic")
    aggregation.add_argument(
        "--size", type=count, default=4096, metavar="N", help="of the decomposed matrix (4096: some minutes)"
    )
    add_json(aggregation)

    local = commands.add_parser("local", help="local training beside a plain padded loop of peft and AdamW")
    local.add_argument(
        "--repeats", type=count, default=5, metavar="N", help="steps of each side (default: 5)"
    )
    add_json(local)

    scale = commands.add_parser("scale", help="10 to 10,000 virtual clients that do all but train")
    add_json(scale)


def _add(commands: Commands, name: str) -> argparse.ArgumentParser:
    purpose, example = EXAMPLES[name]
    return commands.add_parser(
        name, help=purpose, description=purpose[0].upper() + purpose[1:] + ".", epilog=f"Example: {example}"
    )


def _run_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of a run, such as runs/demo")


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
