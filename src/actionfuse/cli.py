"""The program `actionfuse`: one sub-command per use, each in the area it belongs to.

A sub-command's module has `add_arguments(parser)` and `main(args) -> int`; it is imported only when it is called, so
that `actionfuse --help` answers at once. Exit codes: 0 all done, 1 some inputs failed (they are listed), 2 wrong call.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from . import __version__

COMMANDS = {
    # name: (module, one line for --help)
    "probe": ("actionfuse.pipeline.probe", "what is in the files, which are broken and why"),
    "flow": ("actionfuse.pipeline.flow_command", "write optical flow of videos as video, jpg pairs or a preview"),
    "extract": ("actionfuse.extract.command", "features of raw videos"),
    "models": ("actionfuse.backbones.catalog", "backbones with streams, input, parameters, GFLOPs and feature size"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `actionfuse ARGV`; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="actionfuse", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--version", action="version", version=f"actionfuse {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, (module_name, summary) in COMMANDS.items():
        if name == chosen:
            module = importlib.import_module(module_name)
            sub = subparsers.add_parser(
                name, help=summary, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
            )
            module.add_arguments(sub)
            sub.set_defaults(main=module.main)
        else:
            subparsers.add_parser(name, help=summary, add_help=False)
    args = parser.parse_args(argv)
    try:
        return args.main(args)
    except ValueError as error:
        # A wrong call: what was given, what is allowed, what to do. No traceback helps here.
        print(f"actionfuse {args.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `actionfuse probe ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
