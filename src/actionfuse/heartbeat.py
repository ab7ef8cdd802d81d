"""A sign of life for what watches containers: `python -m actionfuse.heartbeat --within-seconds 600`.

Training touches the file that $ACTIONFUSE_HEARTBEAT names after each step and each batch of a test (every process),
evaluate and predict after each batch, predict --live with each frame, extraction after each video and, of long ones, in
between; planning and verifying shards and the driver of Ray touch it as they go on. The exit code is 0 where that was
less than --within-seconds ago, else 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

VARIABLE = "ACTIONFUSE_HEARTBEAT"
EVERY_SECONDS = 1.0
_last = -EVERY_SECONDS


def beat() -> None:
    """Touch the file, at most once a second; nothing where the variable is not set. A full disk ends no training."""
    global _last
    path = os.environ.get(VARIABLE)
    now = time.monotonic()
    if not path or now - _last < EVERY_SECONDS:
        return
    _last = now
    try:
        Path(path).touch()
    except OSError as error:
        print(f"no heartbeat: {error}", file=sys.stderr)
        os.environ.pop(VARIABLE)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m actionfuse.heartbeat", description=__doc__)
    parser.add_argument("--within-seconds", type=float, default=600.0, help="(default: %(default)g)")
    args = parser.parse_args(argv)
    path = os.environ.get(VARIABLE)
    if not path:
        print(f"{VARIABLE} names no file")
        return 1
    try:
        age = time.time() - os.stat(path).st_mtime
    except FileNotFoundError:
        print(f"no heartbeat yet: there is no {path}")
        return 1
    print(f"last heartbeat {age:.0f} s ago")
    return 0 if age < args.within_seconds else 1


if __name__ == "__main__":
    sys.exit(main())
