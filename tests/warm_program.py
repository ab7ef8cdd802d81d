"""`actionfuse ...` many times over without importing torch each time: a process that has imported it forks per call.

Each call is a process of its own, with its own folder, output and exit code, as from a shell. The process that forks
has imported libraries and computed nothing, so no thread of theirs is lost in a fork.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

# What the commands import first, in this order, as they would themselves.
WARM = ("torch", "torchvision", "timm", "cv2", "av", "actionfuse.extract.run", "actionfuse.train.command")


def serve() -> None:
    """Read a call a line, (words, folder, where its output goes), run it, answer with its exit code."""
    import importlib

    for module in WARM:
        importlib.import_module(module)
    from actionfuse.cli import run

    for line in sys.stdin:
        words, folder, output = json.loads(line)
        child = os.fork()
        if child == 0:
            os.chdir(folder)
            where = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            nothing = os.open(os.devnull, os.O_RDONLY)
            for source, target in ((nothing, 0), (where, 1), (where, 2)):
                os.dup2(source, target)
            sys.argv = ["actionfuse", *words]
            run(words)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


class WarmProgram:
    """Runs `actionfuse WORDS` in a folder: (exit code, what it printed on both streams)."""

    def __init__(self, environment: dict[str, str]) -> None:
        command = [sys.executable, __file__]
        self._server = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, words: list[str], folder: Path, output: Path) -> tuple[int, str]:
        assert self._server.stdin is not None and self._server.stdout is not None
        print(json.dumps([words, str(folder), str(output)]), file=self._server.stdin, flush=True)
        code = self._server.stdout.readline()
        assert code, "the process that forks has ended"
        return int(code), output.read_text(encoding="utf-8")

    def __enter__(self) -> WarmProgram:
        return self

    def __exit__(self, _type: type | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._server.communicate()


if __name__ == "__main__":
    serve()
