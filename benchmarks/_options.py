"""Options of `actionfuse extract` for programs that measure parts of it."""

from __future__ import annotations

import argparse

from actionfuse.extract.command import add_arguments, parse_fps
from actionfuse.extract.run import settings_of
from actionfuse.extract.runner import Runner
from actionfuse.extract.settings import build_runners


def runner_of(words: list[str]) -> tuple[Runner, int | None]:
    """The one runner that `actionfuse extract ... WORDS` would use, and its --batch."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["-", "--out", "-", *words])
    (runner,), _ = build_runners(settings_of(args, parse_fps(args.fps)))
    return runner, args.batch
