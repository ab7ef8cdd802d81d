"""Spectrograms of mono sound in numpy, as named presets that follow public networks to the constant.

tbn     TBN (Kazakos et al., ICCV 2019; ekazakos/temporal-binding-network): log power of a 511-point transform of
        1.279 s at 24 kHz, (256 frequencies, 256 times).
vggish  VGGish (Hershey et al., ICASSP 2017; tensorflow/models, research/audioset/vggish): log of 64 mel bands of
        the magnitude at 16 kHz, (64, 96). 96 frames of 25 ms, 10 ms apart, span 0.975 s; VGGish steps by 0.96 s.
ast     AST (Gong et al., Interspeech 2021; YuanGongND/ast, which calls Kaldi's filter bank): log of 128 mel bands of
        the power at 16 kHz, 10.255 s, (128, 1024). Differs: the data set's mean and deviation are not applied here,
        and the sound is not shifted to mean zero as a whole (each frame is, as Kaldi does).
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Literal

import numpy as np


@dataclass(frozen=True, kw_only=True)
class SpectrogramPreset:
    """Everything between samples and cells.

    window_samples: how much sound one spectrogram takes. frame_samples, hop_samples: the short-time frames in it.
    fft_size: frames are zero-padded to this. centred: the first frame is centred on the first sample, with zeros
        before and after the sound (librosa's constant padding); else only whole frames count (Kaldi's snip_edges).
    periodic: Hann window of period frame_samples (librosa, TensorFlow), else symmetric (Kaldi).
    power: 2 = power, 1 = magnitude.
    mel_bands: 0 = linear frequency; else triangles that are straight on the mel scale 1127 ln(1 + f / 700) between
        lowest_hz and highest_hz, without area normalisation; the constant term (0 Hz) counts for nothing.
    log_offset is added before the natural logarithm, log_floor is its least argument.
    remove_mean, pre_emphasis: Kaldi's treatment of each frame before the window.
    """

    name: str
    sample_rate_hz: int
    window_samples: int
    frame_samples: int
    hop_samples: int
    fft_size: int
    centred: bool = False
    periodic: bool = True
    power: Literal[1, 2] = 2
    mel_bands: int = 0
    lowest_hz: float = 0.0
    highest_hz: float = 0.0
    log_offset: float = 0.0
    log_floor: float = 0.0
    remove_mean: bool = False
    pre_emphasis: float = 0.0

    @property
    def window_seconds(self) -> float:
        return self.window_samples / self.sample_rate_hz

    @property
    def cells(self) -> tuple[int, int]:
        """(frequency, time) of one window's spectrogram."""
        return self.mel_bands or self.fft_size // 2 + 1, self.num_frames(self.window_samples)

    def num_frames(self, num_samples: int) -> int:
        """Columns of the spectrogram of that many samples."""
        if self.centred:
            num_samples += self.fft_size // 2 * 2
        return max(0, 1 + (num_samples - (self.fft_size if self.centred else self.frame_samples)) // self.hop_samples)

    @staticmethod
    def named(name: str) -> SpectrogramPreset:
        """The preset of that name; ValueError with near names where there is none."""
        if name not in PRESETS:
            near = get_close_matches(name, PRESETS) or list(PRESETS)
            raise ValueError(f"no spectrogram preset is named {name!r}; did you mean {' or '.join(map(repr, near))}?")
        return PRESETS[name]


PRESETS: dict[str, SpectrogramPreset] = {
    preset.name: preset
    for preset in (
        SpectrogramPreset(
            name="tbn",
            sample_rate_hz=24_000,
            window_samples=30_696,  # 1.279 s
            frame_samples=240,
            hop_samples=120,
            fft_size=511,
            centred=True,
            log_offset=1e-6,
        ),
        SpectrogramPreset(
            name="vggish",
            sample_rate_hz=16_000,
            window_samples=15_600,
            frame_samples=400,
            hop_samples=160,
            fft_size=512,
            power=1,
            mel_bands=64,
            lowest_hz=125,
            highest_hz=7500,
            log_offset=0.01,
        ),
        SpectrogramPreset(
            name="ast",
            sample_rate_hz=16_000,
            window_samples=164_080,
            frame_samples=400,
            hop_samples=160,
            fft_size=512,
            periodic=False,
            mel_bands=128,
            lowest_hz=20,
            highest_hz=8000,
            log_floor=float(np.finfo(np.float32).eps),
            remove_mean=True,
            pre_emphasis=0.97,
        ),
    )
}


def spectrogram(samples: np.ndarray, preset: str | SpectrogramPreset) -> np.ndarray:
    """Float samples (N,) or (B, N) at the preset's rate -> float32 (frequency, time) or (B, frequency, time).

    N need not be the preset's window: the number of columns is preset.num_frames(N).

    Raises: ValueError for an unknown preset, integer samples, or more than two axes.
    """
    preset = SpectrogramPreset.named(preset) if isinstance(preset, str) else preset
    if samples.dtype.kind != "f" or samples.ndim not in (1, 2):
        raise ValueError(f"samples are {samples.dtype} {samples.shape}; they must be floats, (N,) or (B, N)")
    batch = samples[None] if samples.ndim == 1 else samples
    energy = np.abs(np.fft.rfft(_frames(batch.astype(np.float32), preset), n=preset.fft_size))
    if preset.power == 2:
        energy *= energy
    if preset.mel_bands:
        energy = energy @ _mel_weights(
            preset.mel_bands, preset.fft_size, preset.sample_rate_hz, preset.lowest_hz, preset.highest_hz
        )
    if preset.log_floor:
        np.maximum(energy, np.float32(preset.log_floor), out=energy)
    energy += np.float32(preset.log_offset)
    cells = np.log(energy, out=energy).astype(np.float32, copy=False).transpose(0, 2, 1)
    return np.ascontiguousarray(cells[0] if samples.ndim == 1 else cells)


def _frames(batch: np.ndarray, preset: SpectrogramPreset) -> np.ndarray:
    """(B, N) -> windowed frames (B, time, frame_samples)."""
    length, offset = preset.frame_samples, 0
    if preset.centred:
        # The window sits in the middle of fft_size samples. Only its own samples are cut out: where they lie in the
        # transform changes phases, which are not kept.
        side = preset.fft_size // 2
        offset = (preset.fft_size - length) // 2
        batch = np.pad(batch, ((0, 0), (side, side)))
    count = preset.num_frames(batch.shape[1] - (preset.fft_size // 2 * 2 if preset.centred else 0))
    if count == 0:
        return np.zeros((len(batch), 0, length), np.float32)
    every = np.lib.stride_tricks.sliding_window_view(batch[:, offset:], length, axis=1)
    frames = every[:, :: preset.hop_samples][:, :count]
    if preset.remove_mean:
        frames = frames - frames.mean(axis=-1, keepdims=True)
    if preset.pre_emphasis:
        before = np.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
        frames = frames - np.float32(preset.pre_emphasis) * before
    return frames * _hann(length, preset.periodic)


@cache
def _hann(length: int, periodic: bool) -> np.ndarray:
    period = length if periodic else length - 1
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / period)).astype(np.float32)


@cache
def _mel_weights(bands: int, fft_size: int, rate: int, lowest_hz: float, highest_hz: float) -> np.ndarray:
    """float32 (fft_size // 2 + 1, bands)."""

    def mel(hertz: np.ndarray | float) -> np.ndarray:
        return 1127.0 * np.log1p(np.asarray(hertz, np.float64) / 700.0)

    corners = np.linspace(mel(lowest_hz), mel(highest_hz), bands + 2)
    left, middle, right = corners[:-2], corners[1:-1], corners[2:]
    places = mel(np.arange(fft_size // 2 + 1) * rate / fft_size)[:, None]
    weights = np.minimum((places - left) / (middle - left), (right - places) / (right - middle))
    weights[0] = 0
    return np.maximum(weights, 0).astype(np.float32)
