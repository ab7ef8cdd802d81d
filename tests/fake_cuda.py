"""A CUDA device that computes nothing, for tests of where tensors lie. It needs no GPU.

torch's fake tensors have shapes, types and devices, but no numbers. Operators on tensors of two devices raise, and so
does whatever would wait for a GPU's numbers: `item`, `bool`, shapes that hang on them. What an operator takes from the
host at every call, such as indices in a list, is told by `Copies`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import extract_stack
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda")  # of tests that are marked `gpu`: a real one
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or not -m gpu")
ATEN = torch.ops.aten
# They copy a number that lies on the host; other operators hand it to their kernel as an argument.
COPIES = (ATEN._to_copy.default, ATEN.copy_.default, ATEN.where.self, ATEN.index_put.default, ATEN.index_put_.default)


class Copies(TorchDispatchMode):
    """found: operators that saw tensors on the host and on the GPU, and where they were called."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        results = func(*args, **(kwargs or {}))
        seen = devices([x for x in tree_leaves((args, kwargs, results)) if _counts(x, func)])
        if len(seen) > 1:
            places = [f"{x.filename}:{x.lineno}" for x in extract_stack()[:-1] if "/torch/" not in x.filename]
            self.found.append(f"{func} at {places[-1]}")
        return results


def _counts(x: Any, func: Any) -> bool:
    return isinstance(x, Tensor) and (x.ndim > 0 or func in COPIES)


@contextmanager
def fake_cuda(module: nn.Module) -> Iterator[Copies]:
    """Inside, tensors are fake, torch.autocast("cuda") is on where it is asked for, and the module's parameters and
    buffers are on the GPU; what other tensors it holds stay where they are.

    module: made inside `torch.device("meta")`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        patch.setattr("torch.cuda.is_bf16_supported", lambda *_: True)
        patch.setattr("torch.backends.cudnn.enabled", False)  # recurrent layers ask the driver whether to take cuDNN's
        with FakeTensorMode(allow_non_fake_inputs=False):
            _move(module)
            with Copies() as copies:
                yield copies


def autocast(dtype: torch.dtype) -> torch.autocast:
    """The GPU's, off for float32."""
    return torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16)


def _move(module: nn.Module) -> None:
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    new = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cuda")
                    held[name] = nn.Parameter(new, tensor.requires_grad) if held is part._parameters else new


@contextmanager
def waiting_for_nothing() -> Iterator[None]:
    """On a real GPU: inside, whatever waits for it raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def devices(*held: Any) -> set[str]:
    return {(x.fake_device if isinstance(x, FakeTensor) else x.device).type for x in tree_leaves(held)}


def backward(loss: Tensor) -> dict[int, Tensor]:
    """Gradients by the id of their leaf: `loss.backward()` node by node, each gradient on the device of its tensor.

    autograd's own engine asks the driver for the streams of a tensor on CUDA, and there is no driver.
    """
    arrived: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    arrived[loss.grad_fn][0] = torch.ones_like(loss)
    found: dict[int, Tensor] = {}
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        # activations that are computed again belong to one pass
        patch.setattr("torch._C._current_graph_task_id", lambda: id(found))
        for node in _from_loss_to_leaves(loss.grad_fn):
            given = arrived.pop(node, {})
            if not given:
                continue
            if hasattr(node, "variable"):
                found[id(node.variable)] = given[0]
                continue
            grads = [given[k] if k in given else _zeros(each) for k, each in enumerate(node._input_metadata)]
            ours = isinstance(node, torch.autograd.function.BackwardCFunction)
            results = node.apply(*grads) if ours else node(*grads)
            results = results if isinstance(results, tuple) else (results,)
            # those behind the last tensor are None, one for each other argument
            for (following, place), grad in zip(node.next_functions, results, strict=False):
                if following is None or grad is None:
                    continue
                wanted = following._input_metadata[place]
                assert devices(grad) == {wanted.device.type}, f"{node} sends a gradient to the other device"
                if grad.shape != wanted.shape:  # of what was broadcast the engine takes the sum
                    grad = grad.sum_to_size(wanted.shape)
                grad = grad.to(wanted.dtype)
                there = arrived[following].get(place)
                arrived[following][place] = grad if there is None else there + grad
    return found


def _from_loss_to_leaves(root: Any) -> list[Any]:
    """All nodes of a graph, each before those that it sends gradients to."""
    order: list[Any] = []
    stack, seen = [(root, False)], {None}
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack += [(node, True), *((following, False) for following, _ in node.next_functions)]
    return order[::-1]


def _zeros(like: Any) -> Tensor:
    return torch.zeros(like.shape, dtype=like.dtype, device=like.device)
