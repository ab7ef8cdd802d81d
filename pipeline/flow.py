"""Optical flow: methods, and every convention about flow in one place.

Convention: pixels per frame step, float32 (..., H, W, 2); channel 0 is u (to the right), channel 1 is v (down). Field k
goes from frame k to frame k + 1, so T frames have T - 1 fields. A field belongs to the time of its first frame.

Methods (`flow_methods`):
    dis_ultrafast, dis_fast, dis_medium   OpenCV's DIS (Kroeger et al., ECCV 2016); dis_fast is the default on a CPU
    farneback                             Farneback (SCIA 2003), with the settings of wanglimin/dense_flow
    tvl1                                  Zach et al. (DAGM 2007), needs OpenCV's contrib modules
    raft_small, raft_large                Teed and Deng (ECCV 2020), torchvision's; raft_large is the default on a GPU

Every method is a function of the two frames alone: no warm start from the field before, so results do not depend on
where a video was cut or in which order pairs came. OpenCV's results do not depend on its number of threads either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from math import log2
from typing import Any

import cv2
import numpy as np

from actionfuse._registry import Registry

FLOW_BOUND_PIXELS = 20.0
STACK_MODES = ("tsn", "rulstm")
_MIN_SIDE = 16  # smaller frames are padded; DIS reads past its buffers below 8 pixels per side and level

Estimator = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class FlowOptions:
    """What the methods may be told; see FlowComputer."""

    weights: str | None = None
    device: str = "auto"
    precision: str = "fp32"
    batch_pairs: int = 8
    threads: int = 1


class FlowMethod(ABC):
    """One method. It may keep buffers and weights, never anything about frames."""

    @abstractmethod
    def prepare(self, frames: np.ndarray) -> list[np.ndarray]:
        """uint8 (T, H, W, 3) RGB -> what `compute` takes for each of the T frames."""

    @abstractmethod
    def compute(self, prepared: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
        """T prepared frames, T >= 2 -> float32 (T - 1, H, W, 2)."""


flow_methods: Registry[FlowMethod] = Registry("flow method")


class GreyMethod(FlowMethod):
    """A method of OpenCV: grey frames, one pair at a time; `threads` work on different pairs."""

    def __init__(self, make_estimator: Callable[[int, int], Estimator], threads: int) -> None:
        self._make_estimator = make_estimator
        self._threads = threads
        self._estimators: dict[tuple[int, int, int], Estimator] = {}

    def prepare(self, frames: np.ndarray) -> list[np.ndarray]:
        down, right = (max(0, _MIN_SIDE - side) for side in frames.shape[1:3])
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
        if down or right:
            grey = [cv2.copyMakeBorder(frame, 0, down, 0, right, cv2.BORDER_REPLICATE) for frame in grey]
        return grey

    def compute(self, prepared: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
        pairs = len(prepared) - 1
        flow = np.empty((pairs, height, width, 2), np.float32)
        workers = min(self._threads, pairs)

        def work(worker: int) -> None:
            # An estimator owns buffers of one frame size, so each worker has its own.
            key = (worker, *prepared[0].shape)
            if key not in self._estimators:
                self._estimators[key] = self._make_estimator(*prepared[0].shape)
            estimate = self._estimators[key]
            for k in range(worker, pairs, workers):
                flow[k] = estimate(prepared[k], prepared[k + 1])[:height, :width]

        if workers == 1:
            work(0)
        else:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(work, range(workers)))
        return flow


def _dis_estimator(preset: int) -> Callable[[int, int], Estimator]:
    def make(height: int, width: int) -> Estimator:
        dis = cv2.DISOpticalFlow.create(preset)
        # Where the picture has fewer levels than the preset's finest one, OpenCV changes the object's settings during
        # the first call, and the second call then gives another field (or reads outside its buffers). A finest level
        # that the picture has keeps every call alike.
        coarsest = min(int(log2(max(height, width) / 32) + 0.5), int(log2(min(height, width) / 8)))
        finest = min(dis.getFinestScale(), max(coarsest, 0))

        def estimate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            dis.setFinestScale(finest)
            return dis.calc(first, second, None)  # pyright: ignore[reportCallIssue, reportArgumentType]

        return estimate

    return make


@flow_methods.register("dis_ultrafast")
def _dis_ultrafast(options: FlowOptions) -> FlowMethod:
    return GreyMethod(_dis_estimator(cv2.DISOpticalFlow_PRESET_ULTRAFAST), options.threads)


@flow_methods.register("dis_fast")
def _dis_fast(options: FlowOptions) -> FlowMethod:
    return GreyMethod(_dis_estimator(cv2.DISOpticalFlow_PRESET_FAST), options.threads)


@flow_methods.register("dis_medium")
def _dis_medium(options: FlowOptions) -> FlowMethod:
    return GreyMethod(_dis_estimator(cv2.DISOpticalFlow_PRESET_MEDIUM), options.threads)


@flow_methods.register("farneback")
def _farneback(options: FlowOptions) -> FlowMethod:
    def estimate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return cv2.calcOpticalFlowFarneback(
            first,
            second,
            None,  # pyright: ignore[reportCallIssue, reportArgumentType]
            pyr_scale=0.702,
            levels=5,
            winsize=10,
            iterations=2,
            poly_n=7,
            poly_sigma=1.5,
            flags=cv2.OPTFLOW_FARNEBACK_GAUSSIAN,
        )

    return GreyMethod(lambda height, width: estimate, options.threads)


@flow_methods.register("tvl1")
def _tvl1(options: FlowOptions) -> FlowMethod:
    contrib = getattr(cv2, "optflow", None)
    if contrib is None:
        raise ValueError(
            "flow method 'tvl1' needs OpenCV's contrib modules, and this cv2 has none; replace the package: "
            "pip uninstall opencv-python-headless && pip install 'actionfuse[contrib]', or use 'dis_medium'"
        )

    def make(height: int, width: int) -> Estimator:
        tvl1 = contrib.DualTVL1OpticalFlow_create()
        return lambda first, second: tvl1.calc(first, second, None)

    return GreyMethod(make, options.threads)


@flow_methods.register("raft_small")
def _raft_small(options: FlowOptions) -> FlowMethod:
    return _raft("raft_small", options)


@flow_methods.register("raft_large")
def _raft_large(options: FlowOptions) -> FlowMethod:
    return _raft("raft_large", options)


def _raft(name: str, options: FlowOptions) -> FlowMethod:
    from .raft import Raft  # torch only where it is used: decoding processes start without it

    return Raft(
        name,
        weights=options.weights,
        device=options.device,
        precision=options.precision,
        batch_pairs=options.batch_pairs,
    )


def list_flow_methods(pattern: str = "*") -> list[str]:
    """Names that FlowComputer takes, sorted."""
    return flow_methods.names(pattern)


class FlowComputer:
    """Computes flow with one method.

    method: a name of `list_flow_methods()`, or "auto": raft_large where there is a CUDA device, dis_fast elsewhere.
    weights: RAFT only. Path to a torchvision state dict (.pth, .pt, .safetensors), or "pretrained" (torchvision fetches
        it; what "auto" means on a GPU when nothing is given), or "random" for tests. RAFT without is a ValueError.
    device: RAFT only. "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1", ...
    precision: RAFT only. "fp32", "bf16", "fp16": the encoders and the update block; correlations stay in fp32.
    batch_pairs: RAFT only. Pairs that are computed together, fewer where frames are so large that 2 GiB of
        correlations would be exceeded.
    threads: OpenCV methods only. So many pairs are computed at the same time. OpenCV's own threads (cv2.setNumThreads)
        are left as they are.

    The same pair gives the same field, bit for bit with OpenCV's methods and to rounding (batch size) with RAFT.
    Pickles: the copy is built anew from its options. One computer is for one thread.

    Raises: ValueError for an unknown method, weights for a method that has none, RAFT without weights.
    """

    def __init__(
        self,
        method: str = "dis_fast",
        *,
        weights: str | None = None,
        device: str = "auto",
        precision: str = "fp32",
        batch_pairs: int = 8,
        threads: int = 1,
    ) -> None:
        if method == "auto":
            method = default_method(device)
            weights = (weights or "pretrained") if method == "raft_large" else None
        make = flow_methods[method]
        if weights is not None and not method.startswith("raft"):
            raise ValueError(f"flow method {method!r} has no weights, but weights={weights!r} was given; leave it out")
        if batch_pairs < 1 or threads < 1:
            raise ValueError(f"batch_pairs is {batch_pairs} and threads is {threads}; both must be at least 1")
        self.method = method
        self.options = FlowOptions(
            weights=weights, device=device, precision=precision, batch_pairs=batch_pairs, threads=threads
        )
        self._method = make(self.options)

    @property
    def network(self) -> Any:
        """RAFT's torch module; None for OpenCV's methods."""
        return getattr(self._method, "model", None)

    def pairs(self, frames: np.ndarray) -> np.ndarray:
        """Flow between neighbours: uint8 (T, H, W, 3) RGB -> float32 (T - 1, H, W, 2), none for fewer than 2 frames."""
        return self.stream().push(frames)

    def stream(self) -> FlowStream:
        """A fresh stream of frames in chunks; see FlowStream."""
        return FlowStream(self._method)

    def over(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Flow of a video that comes in chunks: one array per chunk, T - 1 fields in all for T frames."""
        stream = self.stream()
        for chunk in chunks:
            yield stream.push(chunk)

    def __reduce__(self) -> tuple[Callable[..., FlowComputer], tuple[str, FlowOptions]]:
        return _rebuild, (self.method, self.options)

    def __repr__(self) -> str:
        return f"FlowComputer({self.method!r}, {self.options})"


class FlowStream:
    """Flow of one video whose frames come in chunks. It remembers the last frame, so that chunk borders leave no trace.

    The first chunk of n frames gives n - 1 fields, every later one n: field k is there as soon as frame k + 1 is.
    """

    def __init__(self, method: FlowMethod) -> None:
        self._method = method
        self._size: tuple[int, int] | None = None
        self._last: list[np.ndarray] = []

    def push(self, frames: np.ndarray) -> np.ndarray:
        """The next frames, uint8 (n, H, W, 3) RGB -> the fields that they complete, float32 (n or n - 1, H, W, 2).

        Raises: ValueError where frames are not uint8 RGB or their size changes.
        """
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise ValueError(f"flow takes frames as uint8 (T, H, W, 3) RGB; got {frames.dtype} {frames.shape}")
        height, width = frames.shape[1:3]
        if self._size not in (None, (height, width)):
            raise ValueError(f"frames of {height}x{width} follow frames of {self._size}; flow needs one size")
        if len(frames):
            self._size = (height, width)
        prepared = self._last + self._method.prepare(frames)
        if len(prepared) < 2:
            self._last = [np.array(frame) for frame in prepared]
            return np.zeros((0, height, width, 2), np.float32)
        flow = self._method.compute(prepared, height, width)
        self._last = [np.array(prepared[-1])]  # a copy: the caller may reuse the buffer it came from
        return flow


def _rebuild(method: str, options: FlowOptions) -> FlowComputer:
    return FlowComputer(
        method,
        weights=options.weights,
        device=options.device,
        precision=options.precision,
        batch_pairs=options.batch_pairs,
        threads=options.threads,
    )


def settle_method(method: str, weights: str | None, device: str = "auto") -> tuple[str, str | None]:
    """A method and its weights where "auto" may be asked for; without weights RAFT then has the published ones."""
    if method != "auto":
        return method, weights
    method = default_method(device)
    return method, weights or ("pretrained" if method.startswith("raft") else None)


def default_method(device: str = "auto") -> str:
    """What method "auto" is: raft_large on a CUDA device, dis_fast elsewhere."""
    if device == "cpu":
        return "dis_fast"
    import torch

    return "raft_large" if device.startswith("cuda") or torch.cuda.is_available() else "dis_fast"


def quantise(flow: np.ndarray, bound: float = FLOW_BOUND_PIXELS) -> np.ndarray:
    """Pixels to uint8 codes, -bound..bound to 0..255: round((v + bound) * 255 / (2 * bound)), clipped.

    This is the coding of the public flow jpgs (wanglimin/dense_flow, yjxiong/temporal-segment-networks; halves go to
    the even code), so networks trained on those read our codes as they are. No motion has no code of its own: 0 lies at
    127.5 and becomes 128, which those networks subtract as the mean; `dequantise` reads 128 as +bound / 255, 0.078.
    """
    if not bound > 0:
        raise ValueError(f"bound is {bound}; it must be a positive number of pixels")
    scaled = np.asarray(flow, np.float32) + np.float32(bound)
    scaled *= np.float32(255 / (2 * bound))
    np.rint(scaled, out=scaled)
    return np.clip(scaled, 0, 255, out=scaled).astype(np.uint8)


def dequantise(codes: np.ndarray, bound: float = FLOW_BOUND_PIXELS) -> np.ndarray:
    """uint8 codes back to pixels, float32: code * 2 * bound / 255 - bound.

    Inside the bound the error is at most half a step, bound / 255: 0.0784 pixels at 20.
    """
    if codes.dtype != np.uint8:
        raise ValueError(f"codes are {codes.dtype}; they must be uint8, as quantise gives them")
    if not bound > 0:
        raise ValueError(f"bound is {bound}; it must be a positive number of pixels")
    table = (np.arange(256) * (2 * bound / 255) - bound).astype(np.float32)
    return table[codes]


def stack_indices(num_fields: int, length: int = 5, *, mode: str = "tsn", edges: str = "repeat") -> np.ndarray:
    """Which fields make the stack of each entry: int64 (entries, length).

    mode "tsn": entry t takes the fields t, t + 1, ..., t + length - 1 (yjxiong/tsn-pytorch: forward from the sampled
        frame; past the end the last field again).
    mode "rulstm": entry t takes the fields t - length + 1, ..., t (fpv-iplab/rulstm: the fields ending at the keyed
        frame; before the start the first field again).
    edges: "repeat" gives one entry per field; "valid" only the num_fields - length + 1 entries that repeat nothing.
    """
    if mode not in STACK_MODES or edges not in ("repeat", "valid"):
        raise ValueError(f"mode is {mode!r}, edges is {edges!r}; allowed: {STACK_MODES} and ('repeat', 'valid')")
    if length < 1 or num_fields < 0:
        raise ValueError(f"a stack of {length} out of {num_fields} fields is impossible; length must be at least 1")
    if edges == "valid":
        return np.arange(max(0, num_fields - length + 1))[:, None] + np.arange(length)
    first = np.arange(num_fields)[:, None] - (length - 1 if mode == "rulstm" else 0)
    return np.clip(first + np.arange(length), 0, max(0, num_fields - 1))


def stack(flow: np.ndarray, length: int = 5, *, mode: str = "tsn", edges: str = "repeat") -> np.ndarray:
    """Stacks of `length` fields as channels u, v, u, v, ...: (T, H, W, 2) -> (T', H, W, 2 * length), same dtype.

    See `stack_indices` for which fields belong to an entry; T' = T with edges "repeat".
    """
    if flow.ndim != 4 or flow.shape[-1] != 2:
        raise ValueError(f"flow is {flow.shape}; it must be (T, H, W, 2)")
    rows = stack_indices(len(flow), length, mode=mode, edges=edges)
    stacked = np.moveaxis(flow[rows], 1, 3)  # (T', H, W, length, 2)
    return stacked.reshape(*stacked.shape[:3], 2 * length)


@cache
def _colour_wheel() -> np.ndarray:
    # Baker et al., "A Database and Evaluation Methodology for Optical Flow", IJCV 2011: six hue ramps, float32 (55, 3).
    corners = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1], [1, 0, 0]], np.float64)
    ramps = []
    for (first, second), steps in zip(zip(corners, corners[1:], strict=False), (15, 6, 4, 11, 13, 6), strict=True):
        share = np.floor(255 * np.arange(steps) / steps)[:, None] / 255
        # A falling ramp is 255 minus the floored rising one.
        ramps.append(first + (second - first) * share)
    return np.concatenate(ramps).astype(np.float32)


def flow_to_rgb(flow: np.ndarray, max_pixels: float | None = None) -> np.ndarray:
    """The Middlebury colour wheel: (..., H, W, 2) -> uint8 (..., H, W, 3); hue = direction, saturation = length.

    max_pixels: the length that gets full saturation; None = the longest vector of the whole array (a clip then keeps
        one scale). Longer vectors are darkened. No motion is white.
    Source: Baker et al. (IJCV 2011), color code of vision.middlebury.edu/flow.
    """
    if max_pixels is not None and not max_pixels > 0:
        raise ValueError(f"max_pixels is {max_pixels}; it must be positive, or None for the longest vector")
    u, v = np.asarray(flow[..., 0], np.float32), np.asarray(flow[..., 1], np.float32)
    length = np.hypot(u, v)
    length /= max_pixels or max(float(length.max(initial=0)), 1e-6)
    # Of the opposite vector, as in Middlebury's code: red is to the right.
    place = (np.arctan2(-v, -u) / np.float32(np.pi) + 1) * np.float32((len(_colour_wheel()) - 1) / 2)
    below = place.astype(np.intp)
    share = place - below
    # Inside, white fades to the hue: 1 - length * (1 - hue); outside the hue is darkened.
    factor = np.where(length <= 1, length, np.float32(0.75))
    white = np.where(length <= 1, 1 - length, 0)
    colours = np.empty((*length.shape, 3), np.uint8)
    for channel, wheel in enumerate(_colour_wheel().T):
        hue = wheel[below]
        hue += share * (np.roll(wheel, -1) - wheel)[below]
        hue *= factor
        hue += white
        hue *= 255
        colours[..., channel] = hue  # rounds down
    return colours
