"""Caffe2 model files: a pickle {'blobs': {name: numpy array}}, read without running anything that it says.

A pickle names the functions that rebuild its objects. Only those of numpy arrays, numbers and plain containers are
known here; a file that names another is refused.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# What the trainer keeps beside the network.
_TRAINER = ("lr", "model_iter", "weight_decay", "weight_decay_bn", "ONE")


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it holds bytes in the encoding {encoding!r}")
    return text.encode("latin1")


# numpy's own rebuilding functions, under the module names of numpy 1 (also Python 2) and numpy 2.
ARRAY: Callable[..., object] = np.empty(0).__reduce__()[0]  # pyright: ignore[reportAssignmentType]
SCALAR: Callable[..., object] = np.float32(0).__reduce__()[0]  # pyright: ignore[reportAssignmentType]
_ALLOWED: dict[tuple[str, str], object] = {
    ("numpy.core.multiarray", "_reconstruct"): ARRAY,
    ("numpy._core.multiarray", "_reconstruct"): ARRAY,
    ("numpy.core.multiarray", "scalar"): SCALAR,
    ("numpy._core.multiarray", "scalar"): SCALAR,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> object:
        if (module_name, global_name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")
        return _ALLOWED[module_name, global_name]


def read_caffe2(path: str | Path) -> dict[str, Tensor]:
    """Blobs of a Caffe2 model file by their own names, the trainer's state left out.

    Raises ValueError where the file is no such pickle, or would run code to be read.
    """
    try:
        with open(path, "rb") as file:
            # latin1: Python 2 wrote these files, and its strings hold the arrays' bytes
            content = _ArraysOnly(file, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise ValueError(
            f"{path} is no checkpoint that can be read safely ({error}); allowed are safetensors files, torch.save "
            "files of tensors and Caffe2 pickles of arrays"
        ) from error
    blobs = content.get("blobs", content) if isinstance(content, dict) else None
    arrays = {name: blob for name, blob in blobs.items() if isinstance(blob, np.ndarray)} if blobs else {}
    if not arrays:
        raise ValueError(f"{path} is a pickle without arrays; a Caffe2 model file is {{'blobs': {{name: array}}}}")
    return {
        str(name): torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))
        for name, array in arrays.items()
        if array.dtype.kind in "fiu" and name not in _TRAINER and not str(name).endswith("_momentum")
    }
