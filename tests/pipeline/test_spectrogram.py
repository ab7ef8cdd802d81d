"""Spectrogram presets against plain loops written from the public descriptions."""

import numpy as np
import pytest

from actionfuse.pipeline.spectrogram import PRESETS, SpectrogramPreset, spectrogram


@pytest.fixture
def noise():
    return lambda count: np.random.default_rng(0).normal(scale=0.1, size=count).astype(np.float32)


def hann(length, period):
    return np.array([0.5 - 0.5 * np.cos(2 * np.pi * n / period) for n in range(length)])


def triangle_weights(bands, fft_size, rate, low, high):
    def mel(hertz):
        return 1127 * np.log(1 + hertz / 700)

    edges = [mel(low) + k * (mel(high) - mel(low)) / (bands + 1) for k in range(bands + 2)]
    weights = np.zeros((bands, fft_size // 2 + 1))
    for band in range(bands):
        left, middle, right = edges[band : band + 3]
        for k in range(1, fft_size // 2 + 1):
            place = mel(k * rate / fft_size)
            if left < place <= middle:
                weights[band, k] = (place - left) / (middle - left)
            elif middle < place < right:
                weights[band, k] = (right - place) / (right - middle)
    return weights


def test_tbn_is_librosas_centred_transform(noise):
    sound = noise(30_696)
    cells = spectrogram(sound, "tbn")
    assert cells.shape == (256, 256) == PRESETS["tbn"].cells and cells.dtype == np.float32
    assert PRESETS["tbn"].window_seconds == pytest.approx(1.279)
    padded = np.pad(sound.astype(np.float64), 255)
    window = np.zeros(511)
    window[135 : 135 + 240] = hann(240, 240)  # in the middle of the 511 points
    for column in (0, 1, 100, 254, 255):
        spectrum = np.fft.fft(padded[120 * column : 120 * column + 511] * window)[:256]
        expected = np.log(np.real(spectrum * np.conj(spectrum)) + 1e-6)
        np.testing.assert_allclose(cells[:, column], expected, atol=1e-4)


def test_vggish_is_log_mel_of_the_magnitude(noise):
    sound = noise(15_600)
    cells = spectrogram(sound, "vggish")
    assert cells.shape == (64, 96) == PRESETS["vggish"].cells
    weights = triangle_weights(64, 512, 16_000, 125, 7500)
    for column in (0, 1, 50, 95):
        frame = np.zeros(512)
        frame[:400] = sound[160 * column : 160 * column + 400] * hann(400, 400)
        expected = np.log(weights @ np.abs(np.fft.fft(frame)[:257]) + 0.01)
        np.testing.assert_allclose(cells[:, column], expected, atol=1e-4)


def test_ast_is_kaldis_filter_bank(noise):
    sound = noise(164_080)
    cells = spectrogram(sound, "ast")
    assert cells.shape == (128, 1024) == PRESETS["ast"].cells
    weights = triangle_weights(128, 512, 16_000, 20, 8000)
    for column in (0, 511, 1023):
        frame = sound[160 * column : 160 * column + 400].astype(np.float64)
        frame = frame - frame.mean()
        frame = np.array([frame[n] - 0.97 * frame[max(0, n - 1)] for n in range(400)])
        power = np.abs(np.fft.fft(np.pad(frame * hann(400, 399), (0, 112)))[:257]) ** 2
        expected = np.log(np.maximum(weights @ power, 1.1920929e-07))
        np.testing.assert_allclose(cells[:, column], expected, atol=1e-3)


@pytest.mark.parametrize("hertz", [600.0, 3000.0, 7100.0])
@pytest.mark.parametrize("name", PRESETS)
def test_a_tone_peaks_in_its_row(name, hertz):
    preset = PRESETS[name]
    t = np.arange(preset.window_samples) / preset.sample_rate_hz
    rows = spectrogram(0.5 * np.sin(2 * np.pi * hertz * t).astype(np.float32), preset)[:, 10:-10].argmax(axis=0)
    if preset.mel_bands:
        mel = 1127 * np.log1p(np.array([preset.lowest_hz, preset.highest_hz, hertz]) / 700)
        expected = (mel[2] - mel[0]) / (mel[1] - mel[0]) * (preset.mel_bands + 1) - 1
    else:
        expected = hertz * preset.fft_size / preset.sample_rate_hz
    assert np.abs(rows - expected).max() <= 1.5  # low mel bands are as narrow as the transform's bins


@pytest.mark.parametrize("name", PRESETS)
def test_batches_and_other_lengths(name, noise):
    preset = PRESETS[name]
    batch = noise(3 * 20_000).reshape(3, 20_000)
    cells = spectrogram(batch, name)
    assert cells.shape == (3, preset.cells[0], preset.num_frames(20_000))
    np.testing.assert_allclose(cells[1], spectrogram(batch[1], name), atol=1e-5)
    assert spectrogram(batch[:, :10], preset).shape[-1] == preset.num_frames(10)
    assert spectrogram(batch[0].astype(np.float64), name).dtype == np.float32


def test_wrong_calls_say_what_is_wrong():
    with pytest.raises(ValueError, match="did you mean 'vggish'"):
        spectrogram(np.zeros(1000, np.float32), "vgish")
    with pytest.raises(ValueError, match="floats"):
        spectrogram(np.zeros(1000, np.int16), "tbn")
    assert SpectrogramPreset.named("tbn") is PRESETS["tbn"]
