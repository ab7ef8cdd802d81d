"""Names that a recipe or a command line may use, and what they make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps a name to the function that makes the thing.

    A duplicate name raises at import time; an unknown one raises a ValueError that suggests near names.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._makers: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Decorator: `@backbones.register("swin3d_t")` above the function that builds it."""

        def remember(make: Callable[..., T]) -> Callable[..., T]:
            if name in self._makers:
                raise ValueError(f"{self.kind} {name!r} is already registered by {self._makers[name].__module__}")
            self._makers[name] = make
            return make

        return remember

    def __getitem__(self, name: str) -> Callable[..., T]:
        if name not in self._makers:
            near = get_close_matches(name, self._makers, n=3)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are: {', '.join(self.names())}"
            raise ValueError(f"no {self.kind} is named {name!r}; {hint}")
        return self._makers[name]

    def __contains__(self, name: str) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def names(self, pattern: str = "*") -> list[str]:
        """Registered names that match the shell pattern, sorted."""
        return sorted(name for name in self._makers if fnmatchcase(name, pattern))
