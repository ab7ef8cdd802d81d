"""RAFT: Recurrent All-Pairs Field Transforms (Teed and Deng, ECCV 2020, arXiv:2003.12039), torchvision's networks.

Differs from calling torchvision's model on pairs, at the same results: each frame of a run goes through the feature
encoder once, although it belongs to two pairs, and only the last of the refinements is brought to full size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.optical_flow import RAFT, Raft_Large_Weights, Raft_Small_Weights, raft_large, raft_small

from .flow import FLOW_BOUND_PIXELS, FlowMethod

_MODELS = {"raft_small": (raft_small, Raft_Small_Weights), "raft_large": (raft_large, Raft_Large_Weights)}
_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_MIN_SIDE = 128  # the coarsest of four correlation levels needs two cells: 8 * 2 * 2 ** 3
_CORRELATION_BYTES = 2 << 30
_UPDATES = 12


class Raft(FlowMethod):
    """Batched over frame pairs; frames are padded (border repeated, both sides) to multiples of 8, at least 128, and
    the fields cropped back. Arguments as in FlowComputer."""

    def __init__(
        self,
        name: str,
        *,
        weights: str | None,
        device: str = "auto",
        precision: str = "fp32",
        batch_pairs: int = 8,
    ) -> None:
        if precision not in _DTYPES:
            raise ValueError(f"precision is {precision!r}; RAFT takes {', '.join(_DTYPES)}")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.dtype = _DTYPES[precision]
        self.batch_pairs = batch_pairs
        self.model = load_raft(name, weights).to(self.device).eval()

    def prepare(self, frames: np.ndarray) -> list[np.ndarray]:
        return list(frames)

    @torch.inference_mode()
    def compute(self, prepared: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
        padding = _padding(height, width)
        left, _, top, _ = padding
        batch = self._batch(height, width, padding)
        flow = np.empty((len(prepared) - 1, height, width, 2), np.float32)
        # The first frame of a batch is the last one of the batch before: its picture and features are kept.
        images = self._images(prepared[:1], padding)
        features = self._encode(images)
        for start in range(0, len(flow), batch):
            new = self._images(prepared[start + 1 : start + 1 + batch], padding)
            images = torch.cat([images[-1:], new])
            features = torch.cat([features[-1:], self._encode(new)])
            fields = self._refine(images[:-1], features[:-1], features[1:])
            fields = fields[:, :, top : top + height, left : left + width].permute(0, 2, 3, 1)
            flow[start : start + len(fields)] = fields.cpu().numpy()
        return flow

    @torch.no_grad()
    def between(self, frames: Tensor, pairs: Tensor) -> Tensor:
        """Fields of any pairs of frames, which stay on the device: frames uint8 (F, H, W, 3), pairs int64 (P, 2) ->
        float32 (P, H, W, 2). A field between two frames that are the same is zero.
        """
        height, width = frames.shape[1:3]
        padding = _padding(height, width)
        left, _, top, _ = padding
        batch = self._batch(height, width, padding)
        used, places = torch.unique(pairs, return_inverse=True)
        features = torch.cat([self._encode(_normal(frames[part], padding)) for part in used.split(batch)])
        flow = torch.empty(len(pairs), height, width, 2, device=frames.device)
        for start in range(0, len(pairs), batch):
            first, second = pairs[start : start + batch].unbind(1)
            one, two = places[start : start + batch].unbind(1)
            fields = self._refine(_normal(frames[first], padding), features[one], features[two])
            fields = fields[:, :, top : top + height, left : left + width].permute(0, 2, 3, 1)
            moves = (frames[first] != frames[second]).flatten(1).any(1)
            flow[start : start + batch] = torch.where(moves[:, None, None, None], fields, 0.0)
        return flow

    def _batch(self, height: int, width: int, padding: tuple[int, int, int, int]) -> int:
        left, right, top, bottom = padding
        cells = (height + top + bottom) * (width + left + right) // 64
        return max(1, min(self.batch_pairs, _CORRELATION_BYTES // (cells * cells * 16 // 3)))

    def _images(self, frames: Sequence[np.ndarray], padding: tuple[int, int, int, int]) -> Tensor:
        return _normal(torch.from_numpy(np.stack(frames)).to(self.device, non_blocking=True), padding)

    def _autocast(self) -> torch.autocast | nullcontext:
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def _encode(self, images: Tensor) -> Tensor:
        with self._autocast():
            return self.model.feature_encoder(images).float()

    def _refine(self, images: Tensor, features: Tensor, next_features: Tensor) -> Tensor:
        """(B, 3, H, W) pictures in -1..1, (B, D, H/8, W/8) features of both frames -> (B, 2, H, W) pixels."""
        model = self.model
        model.corr_block.build_pyramid(features, next_features)
        width = model.update_block.hidden_state_size
        with self._autocast():
            both = model.context_encoder(images)
            hidden, context = torch.tanh(both[:, :width]), F.relu(both[:, width:])
        rows, columns = (torch.arange(n, device=self.device, dtype=torch.float32) for n in features.shape[-2:])
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"))[None]
        flow = features.new_zeros(len(features), 2, *features.shape[-2:])
        for _ in range(_UPDATES):
            correlation = model.corr_block.index_pyramid(centroids_coords=grid + flow)
            with self._autocast():
                hidden, change = model.update_block(hidden, context, correlation, flow)
            flow = flow + change.float()
        model.corr_block.corr_pyramid = []  # the largest tensors there are: not to be held between calls
        if model.mask_predictor is None:
            return 8 * F.interpolate(flow, scale_factor=8, mode="bilinear", align_corners=True)
        with self._autocast():
            mask = model.mask_predictor(hidden)
        return _convex_upsample(flow, mask.float())


def flow_codes(frames: Tensor, pairs: Tensor, network: Raft) -> Tensor:
    """Stacks of flow of a batch, where its frames are: (B, [views,] F, H, W, 3) uint8 and (B, [views,] T, L, 2) int64
    -> uint8 (B, [views,] T, H, W, 2 L), the codes of `flow.quantise`, u, v, u, v, ...
    """
    lead, (count, height, width) = frames.shape[:-4], frames.shape[-4:-1]
    rows = pairs.reshape(-1, *pairs.shape[-3:])
    rows = rows + count * torch.arange(len(rows), device=rows.device)[:, None, None, None]
    wanted, places = torch.unique(rows.reshape(-1, 2), dim=0, return_inverse=True)
    fields = network.between(frames.reshape(-1, height, width, 3), wanted)
    scale = 255 / (2 * FLOW_BOUND_PIXELS)
    codes = (fields + FLOW_BOUND_PIXELS).mul_(scale).round_().clamp_(0, 255).to(torch.uint8)
    stacks = codes[places].view(*rows.shape[:-1], height, width, 2).permute(0, 1, 3, 4, 2, 5).flatten(-2)
    return stacks.reshape(*lead, *stacks.shape[1:])


@lru_cache(maxsize=4)
def shared_raft(method: str, weights: str, device: torch.device) -> Raft:
    """One network for all who compute flow on a device; torch's random numbers go on as if it had been there."""
    with torch.random.fork_rng(devices=[]):
        return Raft(method, weights=weights, device=str(device), batch_pairs=32)


def _normal(pixels: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    images = pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    return F.pad(images, padding, mode="replicate")


def _convex_upsample(flow: Tensor, mask: Tensor) -> Tensor:
    """Each fine vector is a convex combination of the 3x3 coarse ones around it (appendix B of the paper).

    flow (B, 2, h, w), mask (B, 9 * 64, h, w) -> (B, 2, 8 h, 8 w).
    """
    batch, _, height, width = flow.shape
    shares = mask.view(batch, 9, 64, height, width).softmax(dim=1)
    around = F.unfold(8 * flow, kernel_size=3, padding=1).view(batch, 2, 9, height, width)
    fine = torch.einsum("bnshw,bcnhw->bcshw", shares, around)
    return F.pixel_shuffle(fine.reshape(batch, 2 * 64, height, width), 8)


def _padding(height: int, width: int) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) to multiples of 8, at least 128; as the authors' code does for Sintel."""

    def both_sides(side: int) -> tuple[int, int]:
        missing = max(-(-side // 8) * 8, _MIN_SIDE) - side
        return missing // 2, missing - missing // 2

    return (*both_sides(width), *both_sides(height))


def load_raft(name: str, weights: str | None) -> RAFT:
    """torchvision's `raft_small` or `raft_large` with the given weights; strict.

    Raises: ValueError without weights, where the file does not hold this network, or where a download fails.
    """
    build, published = _MODELS[name]
    if weights is None:
        raise ValueError(
            f"flow method {name!r} needs weights: give the path of a torchvision state dict (.pth, .safetensors), or "
            "'pretrained' to let torchvision fetch them; 'dis_fast' needs none"
        )
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build(weights=None)
    if weights == "pretrained":
        try:
            state = published.DEFAULT.get_state_dict(progress=False, check_hash=True)
        except OSError as error:
            raise ValueError(
                f"torchvision could not fetch {published.DEFAULT.url}: {error}; download it elsewhere and give its "
                "path as weights, or use 'dis_fast'"
            ) from error
    else:
        state = _read_state(Path(weights))
    model = build(weights=None)
    ours = model.state_dict()
    missing, unexpected = [k for k in ours if k not in state], [k for k in state if k not in ours]
    misfits = [k for k in ours if k in state and ours[k].shape != state[k].shape]
    if missing or unexpected or misfits:
        raise ValueError(
            f"{weights} does not hold {name}: {len(missing)} tensors are missing {missing[:3]}, {len(unexpected)} are "
            f"left over {unexpected[:3]}, {len(misfits)} have another shape {misfits[:3]}"
        )
    model.load_state_dict(state)
    return model


def _read_state(path: Path) -> dict[str, Tensor]:
    state: dict[str, Any]
    if not path.is_file():
        raise ValueError(f"RAFT weights {path}: no such file; give a torchvision state dict, or 'pretrained'")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the format's reader says about a file that is not of its format
        raise ValueError(f"RAFT weights {path} cannot be read: {error}") from error
    if isinstance(state.get("model"), dict):  # torchvision's own training script saves it so
        state = state["model"]
    return {key.removeprefix("module."): tensor for key, tensor in state.items()}
