"""Lists in text files, a line each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text without blanks around it) of the lines of a UTF-8 file that are not empty.

    Raises ValueError that names the file where it is no UTF-8 text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path}: not a UTF-8 text file: {problem}") from None
    for number, line in enumerate(text.splitlines(), 1):
        if line := line.strip():
            yield number, line
