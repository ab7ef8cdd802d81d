"""Whether values of a head's options are of the kind that its signature declares, and within what any head can take."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

# Of a float, an option that is a probability; of a whole number, one that may be none.
_PROBABILITY, _NONE_OF_THEM = "drop", ("nonlocal_layers",)


def check_options(name: str, make: Callable[..., object], options: Mapping[str, object]) -> None:
    """ValueError for a value that is of another kind than declared, not finite, negative, or no probability.

    name: of the head. make: takes the options by keyword. What of a Literal or of several options together is allowed,
    the head itself says.
    """
    hints = get_type_hints(make.__init__ if inspect.isclass(make) else make)
    for option, value in options.items():
        hint = hints.get(option, object)
        kinds = (hint,) if get_origin(hint) in (None, Literal, Sequence) else get_args(hint)
        if not any(_fits(option, value, kind) for kind in kinds):
            allowed = " or ".join(_told(option, kind) for kind in kinds)
            raise ValueError(f"head {name!r}: {option} is {value!r}; it must be {allowed}")


def _fits(option: str, value: object, kind: Any) -> bool:
    if kind is int:
        return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= _least(option)
    if kind is float:
        most = 1.0 if _PROBABILITY in option else sys.float_info.max
        return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) <= most
    if get_origin(kind) is Literal:
        return isinstance(value, str)
    if get_origin(kind) is Sequence:
        return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)
    return isinstance(value, kind)


def _told(option: str, kind: Any) -> str:
    if kind is int:
        return f"a whole number, {_least(option)} or more"
    if kind is float:
        return "a number from 0 to 1" if _PROBABILITY in option else "a finite number, 0 or more"
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is Sequence:
        return "a list of names"
    return {bool: "True or False", str: "a name"}.get(kind, "None")


def _least(option: str) -> int:
    return 0 if option in _NONE_OF_THEM else 1
