"""Sound keeps the time of its file, and what is wrong with a file is said: gaps, damage, channels, headers, names."""

import os
import struct
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from unils_jax.audio import Resampler, read_audio, read_sound, read_tracks, write_wav
from unils_jax.errors import UserError
from unils_jax.media import is_media, media_extensions

RATES = {"aac": 44100, "libopus": 48000, "libmp3lame": 44100, "pcm_s16le": 16000, "flac": 44100}
PACKED = {"libopus": "flt", "pcm_s16le": "s16", "flac": "s16"}


def voice(rate: int, seconds: float, seed: int = 0) -> np.ndarray:
    """Returns band-limited noise: unlike a tone it shows where in time a sample is."""
    noise = np.random.default_rng(seed).standard_normal(round(rate * seconds))
    return (0.3 * np.convolve(noise, np.ones(16) / 4, "same") / 4).astype(np.float32)


def encode(path, codec: str, tracks, *, starts=(0.0,), gap=None, picture_s: float = 0.0, form: str | None = None):
    """Writes mono tracks that start at `starts` s; from `gap[0]` s on, packets are `gap[1]` s late."""
    rate = RATES[codec]
    with av.open(str(path), "w", format=form) as container:
        video = container.add_stream("mpeg4", rate=25) if picture_s else None
        streams = [container.add_stream(codec, rate=rate, layout="mono") for _ in tracks]
        if video is not None:
            video.width = video.height = 32
            for i in range(round(picture_s * 25)):
                frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 25)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        for stream, samples, start in zip(streams, tracks, starts, strict=True):
            for i in range(0, len(samples), 960):
                block = samples[None, i : i + 960]
                kind = PACKED.get(codec, "fltp")
                block = (block * 32767).astype(np.int16) if kind == "s16" else block
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format=kind, layout="mono")
                frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
                late = gap[1] if gap and i >= gap[0] * rate else 0.0
                frame.pts = i + round((start + late) * rate)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))


def at_16_khz(samples: np.ndarray, rate: int) -> np.ndarray:
    return resample_poly(samples, 16_000, rate)


def delay_s(audio: np.ndarray, reference: np.ndarray) -> float:
    """Returns by how many seconds `reference` comes later in `audio`."""
    size = len(audio) + len(reference)
    product = np.fft.rfft(audio, size) * np.conj(np.fft.rfft(reference, size))
    at = int(np.argmax(np.fft.irfft(product, size)))
    return (at if at < len(audio) else at - size) / 16000


def overwrite(path, where: float, num_bytes: int):
    data = bytearray(path.read_bytes())
    at = int(len(data) * where)
    data[at : at + num_bytes] = bytes((7 * i + 3) % 251 for i in range(num_bytes))
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "libopus"), ("a.mp4", "aac"), ("a.ts", "aac"), ("b.mkv", "pcm_s16le")]
)
def test_sound_that_starts_after_the_picture_keeps_its_place(tmp_path, name, codec):
    samples = voice(RATES[codec], 2.5)
    encode(tmp_path / name, codec, [samples], starts=[0.8], picture_s=4.0)
    sound = read_sound(tmp_path / name)
    assert delay_s(sound.mixed()[0], at_16_khz(samples, RATES[codec])) == pytest.approx(0.8, abs=0.008)
    assert sound.channels.shape[1] / 16000 == pytest.approx(3.3, abs=0.06)
    assert not sound.channels[:, :12000].any()
    assert any("s after the picture; silence was put there" in notice for notice in sound.notices)


def test_sound_alone_in_a_container_with_a_clock_starts_late_too(tmp_path):
    samples = voice(48000, 2.0)
    encode(tmp_path / "a.mka", "libopus", [samples], starts=[1.3])
    sound = read_sound(tmp_path / "a.mka")
    assert delay_s(sound.channels[0], at_16_khz(samples, 48000)) == pytest.approx(1.3, abs=0.008)
    assert "after the file's time zero" in sound.notices[0]


@pytest.mark.parametrize(("name", "codec"), [("a.m4a", "aac"), ("a.webm", "libopus"), ("a.ogg", "libopus")])
def test_a_gap_is_silence(tmp_path, name, codec):
    samples = voice(RATES[codec], 4.0)
    encode(tmp_path / name, codec, [samples], gap=(1.5, 0.7))
    sound = read_sound(tmp_path / name)
    tail = at_16_khz(samples, RATES[codec])[32000:]
    assert delay_s(sound.channels[0], tail) == pytest.approx(2.0 + 0.7, abs=0.008)
    # Ogg has a time for a page of one second, the others for each packet.
    assert sound.notices[0].startswith("has no sound from 1." if name == "a.ogg" else "has no sound from 1.5")


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp3", "libmp3lame"), ("a.m4a", "aac"), ("a.aac", "aac"), ("a.flac", "flac")]
)
def test_a_damaged_packet_is_silence_and_said_where(tmp_path, name, codec):
    samples = voice(RATES[codec], 5.0)
    encode(tmp_path / name, codec, [samples], form="adts" if name == "a.aac" else None)
    whole = read_audio(tmp_path / name)
    overwrite(tmp_path / name, 0.5, 400)
    sound = read_sound(tmp_path / name)
    assert abs(sound.channels.shape[1] - len(whole)) < 800
    # What follows the damage stays where it was.
    assert delay_s(sound.channels[0], whole[60000:76000]) == pytest.approx(60000 / 16000, abs=0.04)
    assert len(sound.notices) == 1 and "damaged" in sound.notices[0] and "from 2." in sound.notices[0]


def test_a_missing_end_of_a_packet_is_silence(tmp_path):
    encode(tmp_path / "a.aac", "aac", [voice(44100, 3.0)], form="adts")
    whole = read_sound(tmp_path / "a.aac").channels.shape[1]
    (tmp_path / "b.aac").write_bytes((tmp_path / "a.aac").read_bytes()[:-60])
    sound = read_sound(tmp_path / "b.aac")
    assert abs(sound.channels.shape[1] - whole) <= 400 and "damaged" in sound.notices[0]


def test_a_container_that_ends_early_says_so(tmp_path):
    encode(tmp_path / "a.mka", "libopus", [voice(48000, 6.0)])
    data = (tmp_path / "a.mka").read_bytes()
    (tmp_path / "b.mka").write_bytes(data[: len(data) // 2])
    (notice,) = read_sound(tmp_path / "b.mka").notices
    assert "the file at 6.01 s by its header: it is damaged or cut short" in notice


@pytest.mark.parametrize("kind", ["opus", "vorbis", "rates", "mp3", "aac", "flac"])
def test_chained_streams_are_read_whole(tmp_path, kind):
    parts = []
    for i, seconds in enumerate((1.5, 0.7, 2.0)):
        path = tmp_path / f"{i}.{kind}"
        if kind in ("vorbis", "rates"):
            rate = (44100, 22050, 48000)[i] if kind == "rates" else 44100
            soundfile.write(path, voice(rate, seconds, i), rate, format="OGG", subtype="VORBIS")
        else:
            codec = {"opus": "libopus", "mp3": "libmp3lame"}.get(kind, kind)
            form = {"opus": "ogg", "aac": "adts"}.get(kind, kind)
            encode(path, codec, [voice(RATES[codec], seconds, i)], form=form)
        parts.append(path.read_bytes())
    chain = tmp_path / f"chain.{'ogg' if kind in ('opus', 'vorbis', 'rates') else kind}"
    chain.write_bytes(b"".join(parts))
    audio = read_audio(chain)
    # Encoders pad each part by up to two packets of 26 ms.
    assert len(audio) / 16000 == pytest.approx(4.2, abs=0.15)
    assert delay_s(audio, read_audio(tmp_path / f"2.{kind}")) == pytest.approx(2.2, abs=0.15)


def test_vorbis_starts_where_libsndfile_starts_it(tmp_path):
    soundfile.write(tmp_path / "a.ogg", voice(16000, 2.0), 16000, format="OGG", subtype="VORBIS")
    samples, _ = soundfile.read(tmp_path / "a.ogg", dtype="float32")
    audio = read_audio(tmp_path / "a.ogg")
    assert abs(len(audio) - len(samples)) < 600
    np.testing.assert_allclose(audio[:30000], samples[:30000], atol=1e-6)


def stereo(path, left: np.ndarray, right: np.ndarray):
    soundfile.write(path, np.stack([left, right], axis=1), 16000, subtype="FLOAT")


def test_two_voices_are_mixed_with_a_word_or_split(tmp_path, caplog):
    left, right = voice(16000, 3.0, 1), 0.5 * voice(16000, 3.0, 2)
    # Each microphone also hears the other person.
    stereo(tmp_path / "a.wav", left + 0.2 * right, right + 0.2 * left)
    mixed = read_audio(tmp_path / "a.wav")
    np.testing.assert_allclose(mixed, 0.6 * (left + right), atol=1e-6)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "2 channels differ" in caplog.text and "mixed into one person's sound" in caplog.text
    caplog.clear()
    tracks = read_tracks(tmp_path / "a.wav", "split")
    np.testing.assert_allclose(tracks, [left + 0.2 * right, right + 0.2 * left], atol=1e-6)
    assert not caplog.records


def test_one_voice_on_both_channels_is_one_person(tmp_path, caplog):
    stereo(tmp_path / "a.wav", voice(16000, 2.0), 0.7 * voice(16000, 2.0))
    assert read_tracks(tmp_path / "a.wav").shape == (1, 32000) and not caplog.records
    assert read_tracks(tmp_path / "a.wav", "split").shape == (1, 32000)
    assert "2 channels are the same sound" in caplog.text


@pytest.mark.parametrize(("right", "sign"), [(-0.9, 1), (-0.4, 1), (-1.6, -1)])
def test_opposite_phase_is_not_silence(tmp_path, caplog, right, sign):
    left = voice(16000, 3.0)
    noise = 0.01 * voice(16000, 3.0, 5)
    stereo(tmp_path / "a.wav", left, right * left + noise)
    audio = read_audio(tmp_path / "a.wav")
    np.testing.assert_allclose(audio, left if sign > 0 else right * left + noise, atol=1e-6)
    assert "opposite phase" in caplog.text


def test_phase_that_turns_over_in_the_middle_is_seen(tmp_path):
    left = voice(16000, 6.0)
    stereo(tmp_path / "a.wav", left, np.concatenate([left[:64000], -left[64000:]]))
    assert read_sound(tmp_path / "a.wav").is_opposite


def test_a_silent_channel_is_neither_opposite_nor_another_voice(tmp_path, caplog):
    stereo(tmp_path / "a.wav", voice(16000, 2.0), np.zeros(32000, np.float32))
    sound = read_sound(tmp_path / "a.wav")
    assert (sound.is_opposite, sound.num_silent, sound.likeness) == (False, 1, pytest.approx(1))
    assert len(read_tracks(tmp_path / "a.wav", "split")) == 2
    read_audio(tmp_path / "a.wav")
    assert not caplog.records


def test_tracks_of_a_file_can_be_named(tmp_path, caplog):
    samples = [voice(48000, 2.0, seed) for seed in (1, 2)]
    encode(tmp_path / "a.mkv", "libopus", samples, starts=[0.0, 0.3], picture_s=2.3)
    first = read_audio(tmp_path / "a.mkv")
    assert "has 2 audio tracks (1: opus; 2: opus); track 1 was read" in caplog.text
    caplog.clear()
    np.testing.assert_array_equal(read_audio(tmp_path / "a.mkv", track=1), first)
    assert not caplog.records
    second = read_audio(tmp_path / "a.mkv", track=2)
    assert delay_s(second, at_16_khz(samples[1], 48000)) == pytest.approx(0.3, abs=0.008)
    with pytest.raises(UserError, match="has 2 audio tracks .* there is no track 3"):
        read_audio(tmp_path / "a.mkv", track=3)
    write_wav(tmp_path / "b.wav", voice(16000, 1.0))
    with pytest.raises(UserError, match="has 1 audio track, there is no track 2"):
        read_audio(tmp_path / "b.wav", track=2)


@pytest.mark.parametrize("scale", [128.0, 32768.0, 2.0**31])
def test_floats_in_units_of_integers_are_refused_with_the_remedy(tmp_path, scale):
    soundfile.write(tmp_path / "a.wav", scale * voice(16000, 1.0), 16000, subtype="FLOAT")
    with pytest.raises(UserError, match=r"a\.wav reaches .*floating point audio is -1\.\.1; divide it"):
        read_audio(tmp_path / "a.wav")


def header(path, offset: int, form: str, value: int):
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, offset, value)
    path.write_bytes(data)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF])
def test_a_size_that_a_recorder_never_filled_in_is_passed_over(tmp_path, size):
    write_wav(tmp_path / "a.wav", voice(16000, 1.0))
    whole = read_audio(tmp_path / "a.wav")
    header(tmp_path / "a.wav", 40, "<I", size)
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav"), whole)
    header(tmp_path / "a.wav", 4, "<I", size)
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav"), whole)


@pytest.mark.parametrize(
    ("offset", "form", "value", "message"),
    [
        (24, "<I", 1, "has a rate of 1 Hz, must be 1000 to 768000"),
        (24, "<I", 999, "has a rate of 999 Hz"),
        (24, "<I", 2_000_000_000, "has a rate of 2000000000 Hz"),
        (24, "<I", 0, "is not an audio file"),
        (22, "<H", 0, "is not an audio file"),
        (22, "<H", 900, "has 900 channels, at most 64"),
        (34, "<H", 0, "can decode, or its header is damaged"),
    ],
)
def test_a_header_that_lies_is_one_line(tmp_path, offset, form, value, message):
    write_wav(tmp_path / "a.wav", voice(16000, 1.0))
    header(tmp_path / "a.wav", offset, form, value)
    with pytest.raises(UserError, match=message) as error:
        read_audio(tmp_path / "a.wav")
    assert "\n" not in str(error.value)


def test_a_long_recording_of_silence_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("unils_jax.audio.MAX_SECONDS", 4)
    encode(tmp_path / "a.flac", "flac", [np.zeros(44100 * 5, np.float32)])
    with pytest.raises(UserError, match="too long to read; cut it up"):
        read_audio(tmp_path / "a.flac")


def test_a_clock_that_jumps_by_hours_is_no_silence(tmp_path):
    encode(tmp_path / "a.mka", "libopus", [voice(48000, 2.0)], gap=(1.0, 20_000.0))
    sound = read_sound(tmp_path / "a.mka")
    assert sound.channels.shape[1] / 16000 == pytest.approx(2.0, abs=0.05)
    assert "its clock jumps by 20000 s" in sound.notices[0]


@pytest.mark.parametrize("name", ["2023-11-09T08:15.mp3", "concat:a.mp3", "file:b.mp3", "data:,x.mp3", "%d.mp3"])
def test_a_name_selects_no_protocol(tmp_path, monkeypatch, name):
    encode(tmp_path / "plain.mp3", "libmp3lame", [voice(44100, 1.0)])
    (tmp_path / name).write_bytes((tmp_path / "plain.mp3").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert len(read_audio(name)) == 16000


@pytest.mark.parametrize("suffix", [b".wav", b".m4a"])
def test_names_that_are_not_utf8_are_read_and_shown(tmp_path, suffix):
    write_wav(tmp_path / "a.wav", voice(16000, 1.0))
    encode(tmp_path / "a.m4a", "aac", [voice(44100, 1.0)])
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\n" + suffix)
    os.rename(tmp_path / f"a{suffix.decode()}", path)
    assert len(read_audio(path)) == pytest.approx(16000, abs=400)
    with open(path, "r+b") as file:
        file.truncate(0)
    with pytest.raises(UserError) as error:
        read_audio(path)
    assert "\n" not in str(error.value) and str(error.value).encode()


def test_home_is_found_where_no_such_file_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_wav(tmp_path / "a.wav", voice(16000, 1.0))
    assert len(read_audio("~/a.wav")) == 16000


def test_a_playlist_opens_no_other_file(tmp_path):
    encode(tmp_path / "a.aac", "aac", [voice(44100, 1.0)], form="adts")
    (tmp_path / "a.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{tmp_path / 'a.aac'}\n#EXT-X-ENDLIST\n"
    )
    (tmp_path / "b.wav").write_text("ffconcat version 1.0\nfile a.aac\n")
    for name in ("a.m3u8", "b.wav"):
        with pytest.raises(UserError, match="is not an audio file"):
            read_audio(tmp_path / name)


def test_a_pipe_and_a_forbidden_file_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(UserError, match="is no regular file"):
        read_audio(tmp_path / "pipe.wav")
    with pytest.raises(UserError, match="does not exist"):
        read_audio("a\0.wav")
    with pytest.raises(UserError, match="cannot be read"):
        read_audio("a" * 300 + ".wav")


def test_media_are_known_by_their_suffix_in_any_case():
    sounds = (
        "wav WAV flac mp3 m4a M4V aac ogg oga opus spx w64 rf64 caf aiff au wma asf amr 3gp avi mkv mka webm ts flv mov"
    )
    others = "npz json txt png jpg gif csv md pt safetensors py html srt vtt m3u8 pdf zip npy log yaml bin dat"
    assert all(is_media(f"a.b.{suffix}") for suffix in sounds.split())
    assert not any(is_media(f"a.{suffix}") for suffix in others.split())
    assert not is_media("wav") and not is_media("a.") and len(media_extensions()) > 150


@pytest.mark.parametrize("rate", [1000, 11025, 44100, 44101, 48000, 96000])
def test_blocks_are_resampled_to_the_bits_of_the_whole(rate, monkeypatch):
    monkeypatch.setattr("unils_jax.audio._BLOCK", 3000)
    random = np.random.default_rng(rate)
    samples = random.standard_normal((2, 150_000)).astype(np.float32)
    resampler, parts, at = Resampler(rate), [], 0
    while at < samples.shape[1]:
        size = int(random.integers(0, 9000))
        parts.append(resampler.push(samples[:, at : at + size]))
        at += size
    result = np.concatenate([*parts, resampler.finish(2)], axis=1)
    np.testing.assert_array_equal(result, [at_16_khz(channel, rate) for channel in samples])


def test_a_header_of_one_hertz_takes_no_memory(tmp_path):
    write_wav(tmp_path / "a.wav", voice(16000, 20.0))
    header(tmp_path / "a.wav", 24, "<I", 1)
    program = (
        "import resource, sys; from unils_jax.audio import read_audio\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "try: read_audio(sys.argv[1])\n"
        "except ValueError as error: print(error)\n"
        # The peak of this program alone: the one of `getrusage` begins with the parent's.
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "a.wav"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    *_, said, peak = done.stdout.splitlines()
    assert "has a rate of 1 Hz" in said and int(peak) < 400_000, done.stderr


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp3", "libmp3lame"), ("a.m4a", "aac"), ("a.mka", "libopus"), ("a.ogg", "libopus"), ("a.ts", "aac")],
)
def test_damage_of_any_kind_is_silence_or_one_line(tmp_path, capfd, name, codec):
    random = np.random.default_rng(sum(map(ord, name)))
    encode(tmp_path / name, codec, [voice(RATES[codec], 1.0)])
    whole = (tmp_path / name).read_bytes()
    for _ in range(40):
        data = bytearray(whole)
        # Half of the damage is in the head, where sizes, offsets and counts are.
        at = int(random.integers(len(data) if random.random() < 0.5 else 400))
        edits = (b"\0\0\0\0", b"\xff" * 4, b"\x7f\xff\xff\xff", random.bytes(40))
        data[at : at + 4] = edits[random.integers(len(edits))]
        if random.random() < 0.3:
            del data[int(random.integers(1, len(data))) :]
        (tmp_path / name).write_bytes(data)
        try:
            assert read_sound(tmp_path / name).channels.shape[1] <= 3700 * 16000
        except UserError as error:
            assert "\n" not in str(error)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("subtype", ["GSM610", "NMS_ADPCM_16"])
def test_codecs_that_cannot_seek_are_read(tmp_path, subtype):
    soundfile.write(tmp_path / "a.wav", voice(16_000, 2.0), 16_000, subtype=subtype)
    assert read_sound(tmp_path / "a.wav").channels.shape == (1, 32_000)
