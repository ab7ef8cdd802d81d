"""Write the last part of docs/training.md, every field of a recipe: `python docs/training_fields.py`."""

from __future__ import annotations

import dataclasses
import inspect
import json
import types
import typing
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from actionfuse.pipeline import protocols
from actionfuse.train import recipe

PAGE = Path(__file__).with_name("training.md")
MARK = "## Every field\n"
# Where each group stands in a recipe.
GROUPS = {
    "": recipe.Recipe,
    "about": recipe.About,
    "data": recipe.Data,
    "task": recipe.TaskRecipe,
    "sampling": recipe.Places,
    "streams.NAME": recipe.StreamRecipe,
    "streams.NAME.clip": recipe.Clip,
    "head": recipe.Head,
    "augment": recipe.Augment,
    "optim": recipe.Optim,
    "loss": recipe.Loss,
    "loss.distance": recipe.Distance,
    "run": recipe.Run,
}


def fields() -> str:
    parts = [
        MARK,
        "Written by `docs/training_fields.py` from `train/recipe.py`. What is not here is refused.\n",
    ]
    for place, group in GROUPS.items():
        text = inspect.cleandoc(group.__doc__ or "")
        parts += [f"### {place or 'At the top'}\n", f"```text\n{text}\n```\n"]
        if place == "sampling":
            rules = (protocols.__doc__ or "").partition("Rules ")[2].partition("\n\n")[0].partition("\n")[2]
            parts += [f"```text\n{inspect.cleandoc(rules)}\n```\n"]
        hints = typing.get_type_hints(group, include_extras=True)
        own = [field for field in dataclasses.fields(group) if hints[field.name] not in GROUPS.values()]
        parts += ["| field | values | default |", "| --- | --- | --- |"]
        parts += [f"| `{field.name}` | {_values(hints[field.name])} | {_default(field)} |" for field in own]
        parts.append("")
    return "\n".join(parts)


def _values(kind: Any) -> str:
    """A type for people: `one of "a", "b"`, `float from 0 to 1`, `whole number or null`."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        bounds = [_bound(each) for part in inner[1:] for each in _bounds(part)]
        return f"{_values(inner[0])} {', '.join(bounds)}"
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(_values, inner))
    if origin is list:
        return f"list of {_values(inner[0])}"
    if origin is tuple:
        return f"{len(inner)} x {_values(inner[0])}" if inner[-1] is not ... else f"list of {_values(inner[0])}"
    if origin is dict:
        return f"name -> {_values(inner[1])}"
    names = {str: "text", float: "number", int: "whole number", bool: "true, false", type(None): "null", Any: "any"}
    return names.get(kind) or kind.__name__


def _bounds(part: Any) -> list[Any]:
    return part.metadata if isinstance(part, FieldInfo) else [part]


def _bound(part: Any) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return " ".join(f"{sign} {getattr(part, name):g}" for name, sign in signs.items() if hasattr(part, name))


def _default(field: Any) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f"`{json.dumps(field.default_factory())}`"
    return "needed" if field.default is dataclasses.MISSING else f"`{json.dumps(field.default)}`"


if __name__ == "__main__":
    guide = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(guide + fields(), encoding="utf-8")
