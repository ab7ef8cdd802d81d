"""The program `actionfuse`: one sub-command per use, each in the area it belongs to.

A sub-command's module has `add_arguments(parser)` and `main(args) -> int`; it is imported only when it is called, so
that `actionfuse --help` answers at once. Exit codes: 0 all done, 1 some inputs failed (they are listed), 2 wrong call.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import io
import os
import sys
import threading
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from . import __version__
from ._memory import keep_freed_memory, no_collection

COMMANDS = {
    # name: (module, one line for --help)
    "probe": ("actionfuse.pipeline.probe", "what is in the files, which are broken and why"),
    "check": ("actionfuse.pipeline.datasets.check", "which files of a dataset are there and which are missing"),
    "flow": ("actionfuse.pipeline.flow_command", "write optical flow of videos as video, jpg pairs or a preview"),
    "extract": ("actionfuse.extract.command", "features of raw videos"),
    "shards": ("actionfuse.extract.shards_command", "extraction by many machines: plan, run, verify"),
    "synth": ("actionfuse.pipeline.synth.command", "write the synthetic kitchen, whose best scores are known"),
    "plan": ("actionfuse.train.plan", "memory and time of a recipe, measured in a few steps, and what to change"),
    "train": ("actionfuse.train.command", "train a model as a recipe says, or go on where it stopped"),
    "evaluate": ("actionfuse.train.evaluate", "test runs on a split, alone or as an ensemble"),
    "predict": ("actionfuse.train.predict", "what is done in raw videos, or what comes next; also live"),
    "report": ("actionfuse.train.report", "one html page of a run: curves, classes, clips, what it looks at"),
    "doctor": ("actionfuse.pipeline.doctor", "what this machine has: versions, GPU, decoders, disk; what to do"),
    "models": ("actionfuse.train.catalog", "backbones and fusion heads: input, parameters, GFLOPs, options, paper"),
    "demo": ("actionfuse.extract.demo", "features of a few real videos, as one html page"),
    "demo-training": ("actionfuse.train.demo", "train and compare fusion heads on the synthetic kitchen"),
}

# What the caller named is not there, or is of the wrong kind: a wrong call, like a ValueError.
WRONG_CALL = (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of descriptions and names the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        default = action.default
        unset = default is None or default is False or default == [] or default == argparse.SUPPRESS
        if unset or not action.option_strings or "default" in text.lower():
            return text
        shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
        return f"{text} (default: {shown.replace('%', '%%')})"


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a call. Options cannot be shortened: a later one could collide."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": HelpFormatter, "allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n'{self.prog} --help' tells what there is\n")


class CommandParser(Parser):
    """The parser of one command: suggests the nearest option where one is misspelt."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        parsed, unknown = super().parse_known_args(args, namespace)
        lists = [action.dest for action in self._actions if not action.option_strings and action.nargs in ("*", "+")]
        if lists:
            # argparse takes positionals from one place only; paths and key=value may stand before and after options
            more = [word for word in unknown if not word.startswith("-")]
            setattr(parsed, lists[-1], [*getattr(parsed, lists[-1]), *more])
            unknown = [word for word in unknown if word not in more]
        if unknown:
            near = [get_close_matches(word.partition("=")[0], self._option_string_actions, n=1) for word in unknown]
            hints = [f"did you mean {match[0]}?" for match in near if match]
            self.error("; ".join([f"nothing is known of {' '.join(unknown)}", *dict.fromkeys(hints)]))
        return parsed, unknown


def make_parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """The whole command line, with the arguments of the command `chosen` only: the others are not imported."""
    parser = Parser(prog="actionfuse", description="Raw video folders in; features and predictions out.")
    parser.add_argument("--version", action="version", version=f"actionfuse {__version__}")
    parser.add_argument(
        "--traceback",
        action="store_true",
        help="show where in the program a wrong call was found: for reports of errors",
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=CommandParser)
    for name, (module_name, summary) in COMMANDS.items():
        if name == chosen:
            with no_collection():
                module = importlib.import_module(module_name)
            command = subparsers.add_parser(name, help=summary, description=module.__doc__)
            module.add_arguments(command)
            command.set_defaults(main=module.main)
        else:
            subparsers.add_parser(name, help=summary, add_help=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `actionfuse ARGV`; returns the exit code. Like argparse, raises SystemExit(2) where ARGV cannot be parsed."""
    argv = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    parser = make_parser(chosen)
    if chosen is not None and chosen not in COMMANDS:
        near = get_close_matches(chosen, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(COMMANDS)}"
        parser.error(f"no command is named {chosen!r}; {hint}")
    args = parser.parse_args(argv, argparse.Namespace(words=argv))
    try:
        return args.main(args)
    except WRONG_CALL as error:
        if args.traceback:
            raise
        # What was given, what is allowed, what to do: a traceback would only bury it.
        print(f"actionfuse {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"actionfuse {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `actionfuse probe ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """`main` as a whole process. The interpreter is left without taking its modules apart: of torch's that takes 1.4 s.

    What a process owes others is done first: threads end, `atexit` functions run, output is flushed.
    """
    keep_freed_memory()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files and classes that the output's encoding has not are written as their codes.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = main(argv)
    except SystemExit as asked:
        if isinstance(asked.code, str):
            print(asked.code, file=sys.stderr)
        code = asked.code if isinstance(asked.code, int) else int(asked.code is not None)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        pass
    os._exit(code)


if __name__ == "__main__":
    run()
