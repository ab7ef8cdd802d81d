"""Class names of a label file, in the forms that data sets and projects publish them in."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path

# Columns of published csv files: EPIC-KITCHENS-100, EPIC-KITCHENS-55, RULSTM and Kinetics, in this order.
_NUMBERS = ("id", "class_id", "verb_id", "noun_id", "action_id", "index", "label")
_NAMES = ("key", "class_key", "name", "action", "class_name", "class")


def read_labels(path: Path) -> tuple[str, ...]:
    """Names of the classes by their numbers, 0 first.

    path: by its extension. `.json` is a list of names, {name: number} (Kinetics, Something-Something; names in double
        quotes lose them) or {number: name}. `.csv` has a line of column names, with the number under id, class_id,
        verb_id or noun_id and the name under key, class_key, name or action (EPIC-KITCHENS' verb and noun classes,
        RULSTM's actions), or has no such line: the number is first, the name last (RULSTM's actions of EGTEA).
        Anything else is text, one name a line; numbers before every name that count from 0 or from 1 are left out.
    Raises: ValueError where there is no such file, or its numbers are not 0, 1, 2 and so on, each once.
    """
    if not path.is_file():
        raise ValueError(f"there is no label file {path}")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".json":
        return _in_order(_of_json(text, path), path)
    if path.suffix.lower() == ".csv":
        return _in_order(_of_csv(text, path), path)
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{path} names no class; it holds one name a line")
    numbers = [name.split(maxsplit=1)[0] for name in names]
    numbered = all(len(name.split(maxsplit=1)) == 2 for name in names)
    if numbered and any(numbers == [str(k + start) for k in range(len(names))] for start in (0, 1)):
        names = [name.split(maxsplit=1)[1] for name in names]
    return tuple(names)


def _of_json(text: str, path: Path) -> Iterable[tuple[object, object]]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if isinstance(content, list):
        return enumerate(content)
    if isinstance(content, dict) and content:
        by_number = all(key.isdecimal() for key in content)
        return [(key, value) if by_number else (value, key.strip('"')) for key, value in content.items()]
    raise ValueError(f"{path} holds no class names; they are a list, {{name: number}} or {{number: name}}")


def _of_csv(text: str, path: Path) -> Iterable[tuple[object, object]]:
    rows = [row for row in csv.reader(text.splitlines()) if row]
    if not rows:
        raise ValueError(f"{path} names no class")
    head = [cell.strip().lower() for cell in rows[0]]
    if head[0].isdecimal():
        number, name = 0, max(len(head) - 1, 1)
    else:
        number = next((head.index(column) for column in _NUMBERS if column in head), -1)
        name = next((head.index(column) for column in _NAMES if column in head), -1)
        if number < 0 or name < 0:
            raise ValueError(
                f"{path} has the columns {', '.join(rows[0])}; the number is looked for under {', '.join(_NUMBERS)}, "
                f"the name under {', '.join(_NAMES)}"
            )
        rows = rows[1:]
    short = [row for row in rows if len(row) <= max(number, name)]
    if short:
        raise ValueError(f"{path} has a line of {len(short[0])} columns: {','.join(short[0])}")
    return [(row[number].strip(), row[name].strip()) for row in rows]


def _in_order(pairs: Iterable[tuple[object, object]], path: Path) -> tuple[str, ...]:
    names: dict[int, str] = {}
    for number, name in pairs:
        if not str(number).isdecimal() or int(str(number)) in names or not isinstance(name, str):
            raise ValueError(f"{path}: the class {name!r} has the number {number!r}; each class needs one of its own")
        names[int(str(number))] = name
    missing = next((k for k in range(len(names)) if k not in names), None)
    if missing is not None or not names:
        raise ValueError(f"{path} has {len(names)} classes and none with the number {missing or 0}; they count from 0")
    return tuple(names[k] for k in range(len(names)))
