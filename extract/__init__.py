"""Raw videos to stored features. `extract_features` for Python, `actionfuse extract` for the shell."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import extract_features
    from .settings import Settings

__all__ = ["Settings", "extract_features"]


def __getattr__(name: str) -> Any:
    # Decode processes import this package too, and must not wait for torch.
    if name == "extract_features":
        from .api import extract_features

        return extract_features
    if name == "Settings":
        from .settings import Settings

        return Settings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
