"""The README tells the truth: its commands and its Python run here, on small videos, as a reader would run them.

How a fenced block is read:
    console   `$ command` lines run in order, all blocks in one folder that holds `videos/` and `mixed/`; the first by a
              shell, further plain calls of actionfuse by a process that has torch imported already. Lines below a
              command are its output: each must be among what it really printed. Numbers (times, sizes, rates), the
              width of gaps and drawn bars may differ; a line `...` stands for any others.
    python    runs, all blocks in one interpreter, in that same folder after the commands.
    text, yaml, ini, none   is read by people only.
A comment before a block changes that: `<!-- not run: REASON -->` or `<!-- exit code: N -->` (of its last command).
A block in any other language that is not marked fails.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from sample_videos import write_damaged_copy, write_sample_folder
from warm_program import WarmProgram

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
READ_ONLY = ("", "text", "yaml", "ini")
FENCE = re.compile(r"(?:^<!-- (?P<note>[^\n]*?) -->\n+)?^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """One fenced block; `line` is where it starts in the README."""

    line: int
    language: str
    body: str
    note: str

    @property
    def runs(self) -> bool:
        return self.language in ("console", "python") and not self.note.startswith("not run: ")

    def commands(self) -> list[tuple[str, list[str]]]:
        """(command, lines shown as its output); a command that ends in a backslash goes on in the next line."""
        found: list[tuple[str, list[str]]] = []
        for line in self.body.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif found and found[-1][0].endswith("\\") and not found[-1][1]:
                found[-1] = (found[-1][0] + "\n" + line, [])
            elif found:
                found[-1][1].append(line)
            else:
                raise ValueError(f"README.md:{self.line}: a console block starts with a `$ ` line, not {line!r}")
        return found


def read_blocks(text: str) -> list[Block]:
    return [
        Block(text.count("\n", 0, match.start("language")) + 1, match["language"], match["body"], match["note"] or "")
        for match in FENCE.finditer(text)
    ]


def loosely(line: str) -> str:
    """A line without what differs from run to run: numbers, widths of columns, drawn bars."""
    return " ".join(re.sub(r"[\d.,:]*\d[\d.,:]*", "#", re.sub(r"[━─╸╺█▏▎▍▌▋▊▉]+", " ", line)).split())


def missing_lines(shown: list[str], printed: str) -> list[str]:
    """Lines that the README shows and the command did not print."""
    real = {loosely(line) for line in printed.splitlines()}
    return [line for line in shown if line.strip() not in ("", "...") and loosely(line) not in real]


BLOCKS = read_blocks(README.read_text(encoding="utf-8"))


def test_every_block_is_run_or_marked():
    assert any(block.runs for block in BLOCKS)
    for block in BLOCKS:
        where = f"README.md:{block.line}: a block in {block.language!r}"
        marked = re.fullmatch(r"not run: \S.*", block.note)
        assert block.runs or block.language in READ_ONLY or marked, f"{where} is neither run nor marked"
        assert not block.note or marked or re.fullmatch(r"exit code: \d+", block.note), f"{where}: {block.note}"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with `videos/` (good ones, with and without sound) and `mixed/` (one good, one damaged)."""
    good = write_sample_folder(tmp_path / "videos")
    (tmp_path / "mixed").mkdir()
    shutil.copy(good[0], tmp_path / "mixed")
    write_damaged_copy(good[0], tmp_path / "mixed" / "half.mp4")
    return tmp_path


def plain_call(command: str) -> list[str] | None:
    """The words after `actionfuse`; None for what needs a shell."""
    words = shlex.split(command.replace("\\\n", " "))
    unquoted = re.sub("'[^']*'", "", command)
    return words[1:] if words[0] == "actionfuse" and not re.search(r"[|&;<>$`*?]", unquoted) else None


def test_everything_runs_in_order(folder):
    programs = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": programs + os.pathsep + os.environ["PATH"], "COLUMNS": "120", "NO_COLOR": "1"}

    def run(*command: str) -> tuple[int, str]:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        return done.returncode, done.stdout + done.stderr

    by_shell = True
    with WarmProgram(environment) as warm:
        for block in BLOCKS:
            if not block.runs or block.language != "console":
                continue
            commands = block.commands()
            exit_codes = [0] * (len(commands) - 1) + [int(block.note.removeprefix("exit code: ") or 0)]
            for (command, shown), expected in zip(commands, exit_codes, strict=True):
                words = None if by_shell else plain_call(command)
                by_shell = False
                code, printed = run("bash", "-c", command) if words is None else warm(words, folder, folder / "output")
                assert code == expected, f"README.md:{block.line}: $ {command}\n{printed}"
                assert missing_lines(shown, printed) == [], f"README.md:{block.line}: $ {command}\n{printed}"

    # The Python examples come last: they may read what the commands wrote.
    code = ""
    for block in BLOCKS:
        if block.runs and block.language == "python":
            # Blank lines in front: a traceback then names the README's own lines.
            code += "\n" * (block.line - code.count("\n")) + block.body
    (folder / "README.py").write_text(code, encoding="utf-8")
    exit_code, printed = run(sys.executable, "README.py")
    assert exit_code == 0, printed


def test_which_commands_need_a_shell():
    assert plain_call("actionfuse models 'swin3d*'") == ["models", "swin3d*"]
    assert plain_call("actionfuse extract videos \\\n  --out x") == ["extract", "videos", "--out", "x"]
    for command in ("actionfuse probe * ", "actionfuse probe x | head", "make demo"):
        assert plain_call(command) is None


def test_the_reading_of_blocks():
    commands = "<!-- exit code: 1 -->\n```console\n$ one \\\n  --two\nout\n$ three\n```\n"
    console, python = read_blocks(f"# Title\n\n{commands}\n```python\nx = 1\n```\n")
    assert (console.line, console.note, console.runs) == (4, "exit code: 1", True)
    assert console.commands() == [("one \\\n  --two", ["out"]), ("three", [])]
    assert (python.line, python.body, python.runs) == (11, "x = 1\n", True)
    assert not read_blocks("<!-- not run: needs a camera -->\n```console\n$ x\n```\n")[0].runs


def test_the_comparison_of_lines():
    printed = "3 videos  in 1.25 s ━━━━ 100%\ndone\n"
    assert missing_lines(["12 videos in 0:07 s ━╸ 5%", "...", "done"], printed) == []
    assert missing_lines(["3 clips in 1 s", "don"], printed) == ["3 clips in 1 s", "don"]
