"""Reading audio: any rate, any channels, and one clear error for whatever is not audio."""

import av
import numpy as np
import pytest
import soundfile

from data_pipelines.synthetic.conversation import SynthConfig
from data_pipelines.synthetic.dataset import make_conversation
from unils_jax.audio import frame_loudness, read_audio, speaking_frames, write_wav
from unils_jax.errors import UserError
from unils_jax.motion import SAMPLE_RATE


def tone(rate: int, seconds: float = 1.0, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def test_16_khz_mono_comes_back_as_it_was(tmp_path):
    write_wav(tmp_path / "a.wav", tone(16000))
    audio = read_audio(tmp_path / "a.wav")
    assert audio.dtype == np.float32 and audio.shape == (16000,)
    np.testing.assert_allclose(audio, tone(16000), atol=1 / 32768)


def test_writing_clips_instead_of_wrapping(tmp_path):
    write_wav(tmp_path / "a.wav", np.float32([2.0, -2.0]))
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), [1, -1], atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_other_rates_are_resampled_to_the_same_tone(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(rate), rate, subtype="FLOAT")
    audio = read_audio(tmp_path / "a.wav")
    assert audio.shape == (16000,)
    np.testing.assert_allclose(audio[500:-500], tone(16000)[500:-500], atol=0.01)


def test_8_khz_stereo_is_averaged_and_resampled(tmp_path):
    stereo = np.stack([tone(8000), np.zeros(8000, np.float32)], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, 8000)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav")[500:-500], tone(16000)[500:-500] / 2, atol=0.01)


def test_flac_is_read(tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(16000), 16000)
    np.testing.assert_allclose(read_audio(tmp_path / "a.flac"), tone(16000), atol=1e-4)


def encode_m4a(path, rate: int, layout: str) -> None:
    channels = 2 if layout == "stereo" else 1
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=rate, layout=layout)
        samples = np.tile(tone(rate, 2.0), (channels, 1))
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


@pytest.mark.parametrize("layout", ["mono", "stereo"])
def test_what_libsndfile_cannot_read_ffmpeg_does(tmp_path, layout):
    encode_m4a(tmp_path / "a.m4a", 48000, layout)
    audio = read_audio(tmp_path / "a.m4a")
    assert abs(len(audio) - 32000) < 2048
    # AAC is lossy, with single overshoots: power and pitch of the middle second must be right, not every sample.
    middle = audio[8000:24000]
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)
    assert np.argmax(np.abs(np.fft.rfft(middle))) == 440


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(UserError, match="missing.wav does not exist"):
        read_audio(tmp_path / "missing.wav")
    with pytest.raises(UserError, match="is a folder"):
        read_audio(tmp_path)


def test_text_renamed_to_wav_is_one_clear_line(tmp_path):
    path = tmp_path / "text.wav"
    path.write_text("not audio at all\n" * 100)
    with pytest.raises(UserError, match="text.wav is not an audio file") as error:
        read_audio(path)
    assert "\n" not in str(error.value)


def test_a_video_without_sound_says_so(tmp_path):
    path = tmp_path / "mute.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    with pytest.raises(UserError, match="no audio track"):
        read_audio(path)


def test_empty_files_are_refused(tmp_path):
    (tmp_path / "a.wav").touch()
    with pytest.raises(UserError, match="0 bytes"):
        read_audio(tmp_path / "a.wav")
    soundfile.write(tmp_path / "b.wav", np.zeros(0, np.float32), 16000)
    with pytest.raises(UserError, match="0 samples"):
        read_audio(tmp_path / "b.wav")


def test_nan_samples_are_refused_and_counted(tmp_path):
    audio = tone(16000)
    audio[[3, 9]] = np.nan, np.inf
    soundfile.write(tmp_path / "a.wav", audio, 16000, subtype="FLOAT")
    with pytest.raises(UserError, match="2 NaN or infinite"):
        read_audio(tmp_path / "a.wav")


def test_a_truncated_wav_gives_what_is_there(tmp_path):
    write_wav(tmp_path / "a.wav", tone(16000))
    whole = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "b.wav").write_bytes(whole[: len(whole) // 2])
    audio = read_audio(tmp_path / "b.wav")
    np.testing.assert_array_equal(audio, read_audio(tmp_path / "a.wav")[: len(audio)])


def test_loudness_of_a_full_scale_sine_is_minus_3_db_and_silence_is_the_floor():
    audio = np.concatenate([2 * tone(16000, 0.4, 500.0), np.zeros(641, np.float32)])
    loudness = frame_loudness(audio)
    assert loudness.shape == (12,)
    np.testing.assert_allclose(loudness[:10], -3.01, atol=0.02)
    np.testing.assert_allclose(loudness[10:], -80)


def test_who_speaks_is_heard_through_room_noise_and_the_other_microphone():
    """Against the true masks of synthetic conversations, which have both."""
    for seed in (1, 2):
        record = make_conversation(SynthConfig(minutes=0.5), seed, 0)
        heard = speaking_frames([track.astype(np.float32) / 32768 for track in record.audio])
        assert heard.shape == record.speech_mask.shape and (heard == record.speech_mask).mean() > 0.97


def test_silence_is_not_speech_and_a_shorter_track_is_silent_after_its_end():
    tone = np.sin(np.arange(SAMPLE_RATE) / 5).astype(np.float32)
    heard = speaking_frames([np.zeros(2 * SAMPLE_RATE, np.float32), tone])
    assert heard.shape == (2, 50) and not heard[0].any() and heard[1, :25].all() and not heard[1, 25:].any()
