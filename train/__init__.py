"""Training, evaluation and prediction: where pipeline, backbones and fusion meet.

Names below are imported when they are first used: `actionfuse train --help` needs no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import Trainer as Trainer
    from .model import ActionModel as ActionModel
    from .model import load_model as load_model
    from .model import save_model as save_model
    from .recipe import Recipe as Recipe
    from .recipe import list_recipes as list_recipes
    from .recipe import load_recipe as load_recipe

_HOME = {
    "ActionModel": "model",
    "Recipe": "recipe",
    "Trainer": "engine",
    "list_recipes": "recipe",
    "load_model": "model",
    "load_recipe": "recipe",
    "save_model": "model",
}
__all__ = [
    "ActionModel",
    "Recipe",
    "Trainer",
    "list_recipes",
    "load_model",
    "load_recipe",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)
