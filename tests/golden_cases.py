"""Golden cases: a reference network described by its state_dict keys, with the outputs it gave.

`load_case("videoswin_t")` reads tests/golden/recognition/videoswin_t.{json,npz}. Weights and inputs are not stored:
golden.py makes them again from the names. What a case may say about them, and what is done about it:

weight_gain: every filled tensor with two or more dimensions is multiplied by it.
fill_key_strip_prefixes: the seed is the key without that prefix; the key itself keeps it.
keep_module_buffers: buffers that the network makes itself; they are left out of the weights.
tied_keys {a: b}: one module (or tensor) under two names; what was filled for b.* (b) counts for a.* (a) as well.
inputs that the npz stores (boxes, categories) are taken from there, the others are standard normal, seeded by name.
taps: outputs of sub-modules as [mean, std, first 64 values].
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import golden
import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Case:
    name: str
    meta: dict[str, Any]
    arrays: dict[str, Tensor] = field(repr=False)

    @property
    def taps(self) -> list[str]:
        return list(self.meta.get("taps", {}))

    def weights(self) -> dict[str, Tensor]:
        """The reference network's state_dict, by its own keys."""
        kept = tuple(self.meta.get("keep_module_buffers", ()))
        gain = self.meta.get("weight_gain", 1.0)
        weights = {}
        for key, shape, dtype in self.meta["keys"]:
            if key.endswith(kept) and kept:
                continue
            tensor = golden.tensor_for(self._seed(key), shape, dtype)
            weights[key] = tensor * gain if tensor.ndim >= 2 and tensor.is_floating_point() and gain != 1.0 else tensor
        for copy, source in self.meta.get("tied_keys", {}).items():
            for key in weights:
                if key == copy or key.startswith(f"{copy}."):
                    weights[key] = weights[source + key.removeprefix(copy)]
        return weights

    def _seed(self, key: str) -> str:
        for prefix in self.meta.get("fill_key_strip_prefixes", ()):
            if key.startswith(prefix):
                return key.removeprefix(prefix)
        return key

    def input(self, name: str) -> Tensor:
        if name in self.arrays:
            return self.arrays[name]
        return golden.input_for(name, self.meta["inputs"][name])

    def check_output(self, name: str, value: Tensor, *, rtol: float, atol: float = 0.0) -> None:
        """Equal to the stored output to within rtol of its greatest magnitude (plus atol)."""
        want = self.arrays[name]
        if value.shape != want.shape:
            raise AssertionError(
                f"{self.name}: output {name} is {tuple(value.shape)}, the reference {tuple(want.shape)}"
            )
        _close(f"{self.name}: output {name}", value, want, rtol, atol)

    def check_tap(self, path: str, value: Tensor, *, rtol: float, atol: float = 0.0) -> None:
        """Mean, std and the first 64 values of a sub-module's output against the stored ones."""
        shape = self.meta["taps"][path]["shape"]
        if list(value.shape) != shape:
            raise AssertionError(f"{self.name}: tap {path} is {tuple(value.shape)}, the reference {tuple(shape)}")
        flat = value.detach().double().flatten()
        mean, std, *first = self.arrays[f"tap:{path}"].double()
        spread = std.item()
        _close(f"{self.name}: std of {path}", flat.std(correction=0), std, rtol, atol)
        _close(f"{self.name}: mean of {path}", flat.mean(), mean, rtol, atol + rtol * spread)
        _close(f"{self.name}: values of {path}", flat[:64], torch.stack(first), rtol, atol + rtol * spread)


def _close(what: str, got: Tensor, want: Tensor, rtol: float, atol: float) -> None:
    got, want = got.detach().double(), want.double()
    error = (got - want).abs().max().item()
    allowed = rtol * want.abs().max().item() + atol
    if not error <= allowed:
        raise AssertionError(f"{what}: max |difference| is {error:.3g}, allowed {allowed:.3g}")


def load_case(name: str, area: str = "recognition") -> Case:
    meta = json.loads((FOLDER / area / f"{name}.json").read_text())
    with np.load(FOLDER / area / f"{name}.npz") as stored:
        arrays = {key: torch.from_numpy(stored[key]) for key in stored.files}
    return Case(name, meta, arrays)


def available(area: str, *names: str) -> list[str]:
    """Those of the names whose files are there: a case that is not given is not tested."""
    return [name for name in names if (FOLDER / area / f"{name}.json").is_file()]


class Tapped:
    """Context manager that keeps the outputs of sub-modules: `with Tapped(net, {"layer4": "res5"}) as outputs:`."""

    def __init__(self, module: nn.Module, paths: dict[str, str]) -> None:
        """paths: name of the tap -> path of the sub-module in `module`."""
        self.module, self.paths = module, paths
        self.outputs: dict[str, Tensor] = {}

    def __enter__(self) -> dict[str, Tensor]:
        self.handles = [
            self.module.get_submodule(path).register_forward_hook(
                lambda _module, _args, output, tap=tap: self.outputs.__setitem__(tap, output)
            )
            for tap, path in self.paths.items()
        ]
        return self.outputs

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
