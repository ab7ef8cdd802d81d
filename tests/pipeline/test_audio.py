"""Sound at the right times, to the sample, from files of many kinds."""

import subprocess
import wave

import av
import imageio_ffmpeg
import numpy as np
import pytest

from actionfuse.pipeline import VideoError
from actionfuse.pipeline.audio import AudioReader, SpectrogramStream, Tape, read_audio, stream_audio

RATE = 44_100
SECONDS = 4


def steps():
    """A tone that steps up every second (400, 700, 1000, 1300 Hz) and a faint sweep, int16: no two places are alike."""
    t = np.arange(SECONDS * RATE) / RATE
    tone = 0.4 * np.sin(2 * np.pi * (400 + 300 * np.floor(t)) * t) + 0.1 * np.sin(2 * np.pi * (2000 + 500 * t) * t)
    return (32767 * tone).astype(np.int16)


def write_wav(path, samples, rate=RATE):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.ascontiguousarray(samples).astype("<i2").tobytes())


PICTURES = ["-f", "lavfi", "-i", f"testsrc=size=64x48:rate=25:duration={SECONDS}"]
H264 = ["-c:v", "libx264", "-preset", "ultrafast"]
FILES = {
    # name: (arguments before the sound, after it)
    "aac.mp4": (PICTURES, [*H264, "-c:a", "aac"]),
    "plain_aac.mp4": (PICTURES, [*H264, "-c:a", "aac", "-aac_pns", "0"]),  # without noise made up by the decoder
    "plain_aac.mkv": (PICTURES, [*H264, "-c:a", "aac", "-aac_pns", "0"]),
    "late.mp4": ([*PICTURES, "-itsoffset", "0.5"], [*H264, "-c:a", "aac", "-aac_pns", "0"]),
    "late.mkv": ([*PICTURES, "-itsoffset", "0.5"], [*H264, "-c:a", "flac"]),
    "flac.mkv": (PICTURES, [*H264, "-c:a", "flac"]),
    "pcm.mov": (PICTURES, [*H264, "-c:a", "pcm_s16le"]),
    "opus.webm": (PICTURES, ["-c:v", "libvpx", "-c:a", "libopus"]),
    "mp3.mp4": (PICTURES, [*H264, "-c:a", "libmp3lame"]),
    "vorbis.ogg": ([], ["-c:a", "libvorbis"]),
    "lame.mp3": ([], ["-c:a", "libmp3lame"]),
    "sound.flac": ([], []),
    "sound.wav": ([], ["-c:a", "pcm_s16le"]),
    "float.wav": ([], ["-c:a", "pcm_f32le"]),
    "deep.flac": ([], ["-sample_fmt", "s32"]),
    "silent.mp4": (None, None),
}
EXACT = ["flac.mkv", "pcm.mov", "sound.flac", "sound.wav", "float.wav", "deep.flac"]
ALIKE = [*EXACT, "plain_aac.mp4", "plain_aac.mkv", "late.mp4", "late.mkv", "mp3.mp4", "vorbis.ogg", "lame.mp3"]


def ffmpeg(*arguments):
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *map(str, arguments)], check=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    write_wav(folder / "source.wav", steps())
    for name, (before, after) in FILES.items():
        if before is None:
            ffmpeg(*PICTURES, *H264, folder / name)
        else:
            ffmpeg(*before, "-i", folder / "source.wav", *after, folder / name)
    return folder


@pytest.fixture(scope="module")
def source():
    return steps().astype(np.float32) / 32768


def lag(sound, reference):
    """By how many samples `sound` comes later than `reference` (at most 3000)."""
    middle = sound[5000:-5000]
    fit = np.correlate(np.pad(reference, 3000)[5000 : len(reference) + 1000], middle, "valid")
    return 3000 - int(fit.argmax())


def loudest_hz(samples, rate):
    return np.abs(np.fft.rfft(samples * np.hanning(len(samples)))).argmax() * rate / len(samples)


@pytest.mark.parametrize("name", ["aac.mp4", "flac.mkv", "sound.wav", "vorbis.ogg", "opus.webm", "lame.mp3"])
@pytest.mark.parametrize("rate", [16_000, 24_000, RATE])
def test_the_tone_steps_at_the_right_times(files, name, rate):
    with AudioReader(files / name) as reader:
        for second in (2, 0, 3, 1):
            whole = reader.read(second, second + 1, rate)
            assert len(whole) == rate and whole.valid.all() and whole.start_seconds == second
            for start, stop in ((0, 0.2), (0.4, 0.6), (0.8, 1)):
                part = whole.samples[round(start * rate) : round(stop * rate)]
                assert loudest_hz(part, rate) == pytest.approx(400 + 300 * second, abs=8)


@pytest.mark.parametrize("name", EXACT)
def test_lossless_files_are_read_bit_by_bit(files, source, name):
    for start, stop in ((0, 4), (1.25, 1.5), (3.9, 4.0), (2.00002, 2.7)):
        sound = read_audio(files / name, start, stop, RATE)
        first = round(start * RATE)
        np.testing.assert_array_equal(sound.samples, source[first : first + round((stop - start) * RATE)])
        assert sound.valid.all()


@pytest.mark.parametrize("name", ["aac.mp4", "plain_aac.mkv", "opus.webm", "mp3.mp4", "vorbis.ogg", "lame.mp3"])
def test_lossy_files_have_no_delay(files, source, name):
    for start, stop in ((0, 4), (2, 3)):
        sound = read_audio(files / name, start, stop, RATE)
        assert lag(sound.samples, source[start * RATE : stop * RATE]) == 0


@pytest.mark.parametrize("name", ALIKE)
@pytest.mark.parametrize("rate", [16_000, RATE])
def test_a_read_is_a_cut_of_the_stream(files, name, rate):
    chunks = list(stream_audio(files / name, rate, chunk_seconds=0.7))
    assert {len(chunk) for chunk in chunks[:-1]} == {round(0.7 * rate)}
    assert [chunk.start_seconds for chunk in chunks] == pytest.approx([0.7 * k for k in range(len(chunks))])
    samples, valid = (np.concatenate([getattr(chunk, part) for chunk in chunks]) for part in ("samples", "valid"))
    random = np.random.default_rng(0)
    for start in [*random.uniform(0, 3, 5), 2.5]:
        sound = read_audio(files / name, start, start + 0.9, rate)
        place = slice(round(start * rate), round(start * rate) + round(0.9 * rate))
        np.testing.assert_array_equal(sound.samples, samples[place])
        np.testing.assert_array_equal(sound.valid, valid[place])
    later = np.concatenate([c.samples for c in stream_audio(files / name, rate, start_seconds=2.5, chunk_seconds=1)])
    np.testing.assert_array_equal(later, samples[round(2.5 * rate) :])


@pytest.mark.parametrize(("name", "early"), [("late.mp4", 1024), ("late.mkv", 0)])
def test_sound_that_begins_after_the_pictures(files, source, name, early):
    sound = read_audio(files / name, 0, 3, RATE)
    begin = RATE // 2
    assert not sound.valid[: begin - early - 50].any() and sound.valid[begin + 50 :].all()
    assert np.abs(sound.samples[: begin - early - 50]).max() == 0
    assert lag(sound.samples[begin:], source[: 3 * RATE - begin]) == 0
    # entered in the middle, past the offset
    middle = read_audio(files / name, 2.5, 3.5, RATE)
    assert lag(middle.samples, source[2 * RATE : 3 * RATE]) == 0


def test_outside_of_the_sound_is_silence_and_says_so(files, source):
    sound = read_audio(files / "sound.wav", -0.5, 4.5, RATE)
    assert len(sound) == 5 * RATE and sound.start_seconds == -0.5
    np.testing.assert_array_equal(np.flatnonzero(sound.valid), np.arange(RATE // 2, RATE // 2 + len(source)))
    np.testing.assert_array_equal(sound.samples[sound.valid], source)
    assert not sound.samples[~sound.valid].any()
    beyond = read_audio(files / "sound.wav", 10, 11, 16_000)
    assert len(beyond) == 16_000 and not beyond.valid.any() and not beyond.samples.any()
    assert len(read_audio(files / "sound.wav", 1, 1, 16_000)) == 0
    padded = list(stream_audio(files / "sound.wav", RATE, stop_seconds=5.5, chunk_seconds=2))
    assert [len(chunk) for chunk in padded] == [2 * RATE, 2 * RATE, 1.5 * RATE]
    assert [chunk.valid.all() for chunk in padded] == [True, True, False] and not padded[2].valid.any()


def test_no_audio_stream_is_silence(files, tmp_path):
    (tmp_path / "frames").mkdir()
    for path in (files / "silent.mp4", tmp_path / "frames", tmp_path / "%010d.jpg", tmp_path / "frames.tar"):
        sound = read_audio(path, 0.5, 2, 16_000)
        assert len(sound) == 24_000 and not sound.samples.any() and not sound.valid.any()
        assert list(stream_audio(path, 16_000)) == []
        assert [len(c) for c in stream_audio(path, 16_000, stop_seconds=1, chunk_seconds=0.5)] == [8000, 8000]
        with AudioReader(path) as reader:
            assert not reader.has_sound


def test_a_gap_in_the_sound_is_kept(files, source, tmp_path):
    # The packets of the second second are left out; the times of the others stay.
    with av.open(str(files / "sound.flac")) as old, av.open(str(tmp_path / "gap.mkv"), "w") as new:
        stream = new.add_stream_from_template(old.streams.audio[0])
        for packet in old.demux(old.streams.audio[0]):
            if packet.dts is not None and not 1 <= packet.pts * packet.time_base < 2:
                packet.stream = stream
                new.mux(packet)
    block = 4608  # samples of a FLAC frame at most
    sound = read_audio(tmp_path / "gap.mkv", 0, 4, RATE)
    assert sound.valid[:RATE].all() and sound.valid[2 * RATE + block : -50].all()
    assert not sound.valid[RATE + block : 2 * RATE].any() and not sound.samples[RATE + block : 2 * RATE].any()
    place = slice(round(2.5 * RATE), round(3.5 * RATE))
    # Matroska says where sound goes on in whole milliseconds.
    assert abs(lag(sound.samples[place], source[place])) <= RATE * 0.0005 + 1
    np.testing.assert_array_equal(sound.samples[:RATE], source[:RATE])


def test_mono_is_the_mean_of_the_channels(tmp_path, source):
    left, right = steps(), np.roll(steps(), 1000)
    write_wav(tmp_path / "two.wav", np.stack([left, right], 1))
    sound = read_audio(tmp_path / "two.wav", 0, 1, RATE)
    expected = (left.astype(np.float64) + right)[:RATE] / 2 / 32768
    np.testing.assert_allclose(sound.samples, expected, atol=1e-7)


@pytest.mark.parametrize(("rate_in", "rate"), [(48_000, 16_000), (8_000, 24_000), (22_050, 16_000), (44_100, 24_000)])
def test_resampling_keeps_time_and_level(tmp_path, rate_in, rate):
    hertz = 700.0
    t = np.arange(3 * rate_in) / rate_in
    write_wav(tmp_path / "sine.wav", (20_000 * np.sin(2 * np.pi * hertz * t)).astype(np.int16), rate_in)
    for start in (0.1, 1.234567, 2.0):
        sound = read_audio(tmp_path / "sine.wav", start, start + 0.5, rate)
        times = sound.start_seconds + np.arange(len(sound)) / rate
        assert abs(sound.start_seconds - start) <= 0.5 / rate
        expected = 20_000 / 32_768 * np.sin(2 * np.pi * hertz * times)
        assert np.abs(sound.samples - expected).max() < 3e-4


def test_damage_is_reported_or_marked(files, tmp_path):
    (tmp_path / "text.wav").write_text("no sound at all")
    (tmp_path / "empty.mp4").touch()
    for path in (tmp_path / "text.wav", tmp_path / "empty.mp4", tmp_path / "missing.mp4"):
        with pytest.raises(VideoError, match=path.name):
            read_audio(path, 0, 1, 16_000)
    data = bytearray((files / "lame.mp3").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
    (tmp_path / "hole.mp3").write_bytes(data)
    sound = read_audio(tmp_path / "hole.mp3", 0, 4, RATE)
    assert 0.8 < sound.valid.mean() <= 1 and sound.valid[:RATE].all()
    cut = (files / "sound.wav").read_bytes()[: RATE * 2]
    (tmp_path / "cut.wav").write_bytes(cut)
    sound = read_audio(tmp_path / "cut.wav", 0, 4, RATE)
    assert sound.valid.sum() == (len(cut) - 44 - 34) // 2 or sound.valid.sum() == (len(cut) - 44) // 2


def test_a_stream_holds_one_chunk_however_long_the_sound_is():
    def pieces():
        for k in range(0, 1_000_000, 1000):
            yield k, np.full(1000, k, np.float32)
        yield 10**12, np.ones(1000, np.float32)  # time stamps that jump by months

    tape = Tape(pieces())
    for first in range(0, 999_000, 3700):
        samples, valid = tape.window(first, first + 3700)
        assert samples[0] == first // 1000 * 1000 and valid.all() == (first + 3700 <= 1_000_000)
        assert sum(len(piece) for _, piece in tape._held) <= 3700 + 2 * 1000
    samples, valid = tape.window(10**12 - 5, 10**12 + 5)
    assert valid.tolist() == [False] * 5 + [True] * 5 and tape.start == 0 and not tape.ended
    assert not tape.window(10**12 + 999, 10**12 + 1001)[1][1] and tape.ended and tape.position == 10**12 + 1000


def test_wrong_calls_say_what_is_wrong(files):
    with pytest.raises(ValueError, match="stop_seconds must not be before"):
        read_audio(files / "sound.wav", 2, 1, 16_000)
    with pytest.raises(ValueError, match="positive whole number"):
        read_audio(files / "sound.wav", 0, 1, 0)
    with pytest.raises(ValueError, match="at least one sample"):
        list(stream_audio(files / "sound.wav", 16_000, chunk_seconds=0))


# --- spectrograms along a file ---------------------------------------------------------------------------------------


def test_windows_are_clamped_to_the_sound(files):
    window = 30_696 / 24_000
    rows = list(SpectrogramStream(files / "sound.wav", "tbn", [-1.0, 0.0, 0.3, 2.0, 3.7, 4.0, 9.0]))
    assert all(row.cells.shape == (256, 256) and row.cells.dtype == np.float32 for row in rows)
    starts = [row.start_seconds for row in rows]
    assert starts[1:6] == pytest.approx([0, 0, 2 - window / 2, 4 - window, 4 - window], abs=1 / 24_000)
    assert [row.stop_seconds - row.start_seconds for row in rows] == pytest.approx([window] * 7)
    assert [row.heard for row in rows] == [False, True, True, True, True, True, False]
    silence = np.float32(np.log(1e-6))
    assert np.abs(rows[0].cells - silence).max() < 1e-5 and np.abs(rows[6].cells - silence).max() < 1e-5


def test_windows_match_single_reads(files):
    from actionfuse.pipeline.spectrogram import spectrogram

    centres = np.linspace(2.1, 2.9, 7)  # does not begin at the start of the file
    for centre, row in zip(centres, SpectrogramStream(files / "flac.mkv", "vggish", centres), strict=True):
        assert row.start_seconds == pytest.approx(centre - 0.4875, abs=1 / 16_000)
        sound = read_audio(files / "flac.mkv", row.start_seconds, row.stop_seconds, 16_000)
        np.testing.assert_array_equal(row.cells, spectrogram(sound.samples, "vggish"))


def test_a_short_sound_is_padded(tmp_path):
    write_wav(tmp_path / "short.wav", steps()[: RATE // 2])
    (row,) = SpectrogramStream(tmp_path / "short.wav", "tbn", [0.25])
    assert row.heard and row.start_seconds == 0
    silent = np.abs(row.cells - np.log(1e-6)).max(axis=0) < 1e-3
    assert not silent[: int(0.49 * 200)].any() and silent[int(0.52 * 200) :].all()  # columns are 5 ms


def test_no_sound_gives_windows_of_silence(files):
    rows = list(SpectrogramStream(files / "silent.mp4", "tbn", [0.5, 1.5]))
    assert len(rows) == 2 and not any(row.heard for row in rows)
    with pytest.raises(ValueError, match="did you mean 'tbn'"):
        SpectrogramStream(files / "silent.mp4", "tnb", [0.5])
    with pytest.raises(ValueError, match="ascending"):
        SpectrogramStream(files / "silent.mp4", "tbn", [0.5, 0.2])
