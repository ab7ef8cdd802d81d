"""The sound of the synthetic kitchen: a timbre under an amplitude envelope while a hand acts, over a hum and hiss.

An envelope is a function of the seconds since the act began, so that it is as fast in short actions as in long ones.
"""

from __future__ import annotations

import numpy as np

from .law import KitchenLaw, facets
from .script import Instance, VideoScript

SAMPLE_RATE_HZ = 16_000
_HISS = 0.004
_RAMP_SECONDS = 0.01  # at both ends of an act, against clicks

# Partials of a timbre: hertz, amplitude. Bands of noise: low and high hertz, amplitude.
_PARTIALS: dict[str, tuple[tuple[float, float], ...]] = {
    "ceramic": ((1850, 0.5), (2960, 0.4), (4430, 0.25), (6100, 0.12)),
    "metal": ((520, 0.3), (1240, 0.35), (2210, 0.3), (3380, 0.3), (5170, 0.25), (7020, 0.15)),
    "wet": ((210, 0.15),),
    "hard": ((330, 0.45), (690, 0.4), (1030, 0.3)),
    "soft": ((110, 0.4), (165, 0.3)),
    "dull": ((800, 0.15),),
}
_BANDS: dict[str, tuple[float, float, float]] = {
    "ceramic": (4000, 7500, 0.12),
    "metal": (2000, 7800, 0.15),
    "wet": (300, 1300, 0.9),
    "hard": (200, 1500, 0.25),
    "soft": (60, 420, 0.8),
    "dull": (500, 2500, 0.5),
}


def envelope(symbol: str, seconds: np.ndarray) -> np.ndarray:
    """Amplitude 0..1 at seconds (N,) after the act began, of a symbol of the facet `envelope`."""
    t = seconds

    def pulses(hertz: float, sharpness: float) -> np.ndarray:
        """Strikes that ring off."""
        return np.exp(-sharpness * (t * hertz % 1.0))

    def swell(hertz: float) -> np.ndarray:
        return 0.5 - 0.5 * np.cos(2 * np.pi * hertz * t)

    shapes = {
        "take": lambda: np.exp(-t / 0.18),
        "put": lambda: (t / 0.4).clip(0.1, 1.0) * (0.35 + 0.65 * (t < 0.45)),
        "wash": lambda: 0.15 + 0.85 * swell(2.5),
        "cut": lambda: pulses(5.0, 7.0),
        "stir": lambda: 0.55 + 0.4 * np.sin(2 * np.pi * 1.6 * t),
        "turn": lambda: (t * 3.0 % 1.0 < 0.35).astype(np.float64),
        "shake": lambda: pulses(9.0, 3.0),
        "squeeze": lambda: 1.0 - pulses(1.8, 3.0),
        "of take, put, wash, cut": lambda: np.full_like(t, 0.6),
        "of stir, turn, shake, squeeze": lambda: 0.25 + 0.75 * pulses(2.0, 1.0),
    }
    if symbol not in shapes:
        raise ValueError(f"no envelope is called {symbol!r}; there are {', '.join(shapes)}")
    return shapes[symbol]()


def timbre(symbol: str, num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """A steady sound of a symbol of the facet `timbre`, float64 (num_samples,), of about equal loudness for all."""
    if symbol not in _PARTIALS:
        raise ValueError(f"no timbre is called {symbol!r}; there are {', '.join(_PARTIALS)}")
    t = np.arange(num_samples) / SAMPLE_RATE_HZ
    sound = np.zeros(num_samples)
    for hertz, amplitude in _PARTIALS[symbol]:
        sound += amplitude * np.sin(2 * np.pi * hertz * rng.uniform(0.99, 1.01) * t + rng.uniform(0, 2 * np.pi))
    low, high, amplitude = _BANDS[symbol]
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    hertz = np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE_HZ)
    band = np.fft.irfft(spectrum * ((hertz >= low) & (hertz <= high)), num_samples)
    sound += amplitude * band / max(float(band.std()), 1e-9)
    return 0.22 * sound / max(float(sound.std()), 1e-9)


def waveform(law: KitchenLaw, script: VideoScript) -> np.ndarray:
    """float32 (N,) in -1..1: the sound of a whole video."""
    rng = np.random.default_rng((*script.seed, 3))
    total = round(script.duration_seconds * SAMPLE_RATE_HZ)
    t = np.arange(total) / SAMPLE_RATE_HZ
    sound = _HISS * rng.standard_normal(total) + 0.003 * np.sin(2 * np.pi * 100 * t + rng.uniform(0, 2 * np.pi))
    for instance in script.instances:
        begin, end = act_seconds(law, instance)
        first, last = round(begin * SAMPLE_RATE_HZ), round(end * SAMPLE_RATE_HZ)
        sound[first:last] += _act(law, instance, last - first)
    return sound.clip(-1, 1).astype(np.float32)


def act_seconds(law: KitchenLaw, instance: Instance) -> tuple[float, float]:
    """When the hand acts, [begin, end) on the video's clock."""
    start, duration = instance.start_seconds, instance.duration_seconds
    return start + instance.act_from * duration, start + law.act_until * duration


def _act(law: KitchenLaw, instance: Instance, num_samples: int) -> np.ndarray:
    rng = np.random.default_rng((*instance.seed, 1))
    names = {name: facets(law)[name].symbols[instance.symbols[name]] for name in ("envelope", "timbre")}
    t = np.arange(num_samples) / SAMPLE_RATE_HZ
    edges = (np.minimum(t, t[::-1]) / _RAMP_SECONDS).clip(0, 1)
    loudness = rng.uniform(0.8, 1.2)
    return loudness * edges * envelope(names["envelope"], t) * timbre(names["timbre"], num_samples, rng)
