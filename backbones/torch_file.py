"""torch.save files: tensors, numbers and options, read without running anything that the file names.

`torch.load(weights_only=True)` refuses a file that names classes it does not know. Trainers put their configuration
beside the weights (OmegaConf in EPIC-KITCHENS' C1 networks, yacs, Lightning): an object of these becomes an empty
dictionary. A file that names anything else is refused.
"""

from __future__ import annotations

import pickle
import re
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch

from .caffe2 import ARRAY, SCALAR

# Numbers beside the weights (best accuracy and the like) and options; rebuilding them runs nothing else.
_HARMLESS = [Namespace, np.dtype, np.ndarray, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?"))]
# numpy 1 wrote another module name than numpy 2
_REBUILDERS = [
    (function, f"{module}.multiarray.{name}")
    for function, name in ((SCALAR, "scalar"), (ARRAY, "_reconstruct"))
    for module in ("numpy.core", "numpy._core")
]
# Packages of configurations, and what their objects are made of.
_SETTINGS = ("omegaconf.", "yacs.", "fvcore.", "easydict.", "addict.", "mmcv.", "mmengine.", "typing.", "pathlib.")
_SETTINGS += ("pytorch_lightning.", "lightning.", "lightning_fabric.", "collections.defaultdict")
_SETTINGS += tuple(
    f"builtins.{kind}" for kind in ("bool", "dict", "float", "int", "list", "object", "set", "str", "tuple")
)


class _Nothing(dict):
    """Stands for an object of settings, whatever it is made from."""

    def __init__(self, *_arguments: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        pass


def read_torch(path: Path) -> object:
    """What torch.save wrote, settings as empty dictionaries. Raises ValueError where reading it would run code."""
    nothing: dict[str, tuple[type, str]] = {}
    while True:
        try:
            with torch.serialization.safe_globals([*_HARMLESS, *_REBUILDERS, *nothing.values()]):
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            unknown = re.search(r"Unsupported global: GLOBAL (\S+) ", str(error))
            name = unknown[1] if unknown else ""
            name = name if "." in name else f"builtins.{name}"
            if not name.startswith(_SETTINGS) or name in nothing:
                refused = re.search(r"GLOBAL (\S+)", str(error))
                names = f" (it names {refused[1]})" if refused else ""
                raise ValueError(
                    f"{path} holds more than tensors and numbers{names}, and reading that would run code from the "
                    "file. Where you trust it, save its tensors alone, torch.save(state_dict, path), and give that file"
                ) from error
            nothing[name] = (_Nothing, name)
        except (RuntimeError, EOFError, OSError, ValueError) as error:
            if "TorchScript" in str(error):
                raise ValueError(
                    f"{path} is a TorchScript archive, a program with its weights. Where you trust it, save those "
                    "alone, torch.save(torch.jit.load(path).state_dict(), path), and give that file"
                ) from error
            raise ValueError(f"{path} is no whole torch checkpoint; fetch or save it again: {error}") from error
