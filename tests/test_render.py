import logging

import av
import jax.numpy as jnp
import numpy as np
import pytest

from unils_jax import render
from unils_jax.audio import write_wav
from unils_jax.errors import UserError
from unils_jax.main import main
from unils_jax.models.flame import vertices
from unils_jax.models.standin import standin_asset
from unils_jax.motion import HEAD, JAW, SAMPLE_RATE, STANDIN_SHAPES, save_motion
from unils_jax.render import render_frame, render_video

SIZE = 128
MOUTH = (slice(int(0.62 * SIZE), int(0.86 * SIZE)), slice(int(0.35 * SIZE), int(0.65 * SIZE)))


@pytest.fixture(params=render.BACKENDS)
def backend(request) -> str:
    if request.param == "pyvista" and not render.pyvista_works():
        pytest.skip("pyvista cannot draw here; install the extra `render` and libegl1 libgl1-mesa-dri")
    return request.param


def talking(num_people: int, num_frames: int) -> np.ndarray:
    """A jaw that opens over the first half and closes over the second; heads that sway."""
    motion = np.zeros((num_people, num_frames, 108), np.float32)
    t = np.linspace(0, 1, num_frames, dtype=np.float32)
    motion[..., JAW] = (0.3 * np.sin(np.pi * t))[:, None]
    motion[..., HEAD] = 0.1 * np.sin(2 * np.pi * t)[:, None]
    return motion


def tone(hertz: float, seconds: float) -> np.ndarray:
    return 0.4 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE).astype(np.float32)


def pitch(samples: np.ndarray) -> float:
    return np.abs(np.fft.rfft(samples)).argmax() * SAMPLE_RATE / samples.size


def decode_video(path) -> tuple[np.ndarray, np.ndarray | None]:
    """Pictures [T, H, W, 3] and audio [2, N], without the encoder's padding after the end."""
    with av.open(str(path)) as container:
        images = np.array([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return images, None
        audio = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
    return images, audio


def test_a_second_of_two_people_is_25_frames_with_sound_in_sync(tmp_path, backend):
    path = tmp_path / "v.mp4"
    left, right = tone(440, 1.0), tone(880, 0.5)  # the second is shorter: padded
    left[: SAMPLE_RATE // 2] = 0
    summary = render_video(
        path, talking(2, 25), standin_asset(), [left, right], expression_basis="standin", size=SIZE, backend=backend
    )
    assert summary.num_frames == 25 and summary.backend == backend and summary.frames_per_s > 0
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.width, video.height, video.average_rate) == (2 * SIZE, SIZE, 25)
        assert float(video.duration * video.time_base) == 1.0
        assert abs(float(audio.duration * audio.time_base) - 1.0) <= 0.04
        assert audio.start_time * audio.time_base == 0 and audio.codec_context.sample_rate == SAMPLE_RATE
    images, sound = decode_video(path)
    assert len(images) == 25
    half = SAMPLE_RATE // 2
    assert abs(pitch(sound[0, half : 2 * half]) - 440) < 5 and abs(pitch(sound[1, :half]) - 880) < 5
    onset = np.flatnonzero(np.abs(sound[0]) > 0.2)[0]
    assert abs(onset - half) < 320, "sound begins within half a frame of where it should"
    assert np.abs(sound[1, half + 1024 : 2 * half]).max() < 0.01


def test_the_mouth_opens_in_the_picture(tmp_path, backend):
    motion = np.zeros((1, 108), np.float32)
    closed = render_frame(motion, standin_asset(), expression_basis="standin", size=SIZE, backend=backend)
    motion[:, JAW] = 0.3
    opened = render_frame(motion, standin_asset(), expression_basis="standin", size=SIZE, backend=backend)
    assert closed.shape == (SIZE, SIZE, 3) and closed.dtype == np.uint8
    dark = [(image[MOUTH].max(axis=-1) < 80).sum() for image in (closed, opened)]
    assert dark[1] > dark[0] + 30
    upper = slice(0, SIZE // 2)
    assert np.abs(closed[upper].astype(int) - opened[upper]).max() < 3


def test_a_blink_hides_the_iris(backend):
    motion = np.zeros((2, 108), np.float32)
    for name in ("blink_left", "blink_right"):
        motion[1, list(STANDIN_SHAPES).index(name)] = STANDIN_SHAPES[name]
    image = render_frame(motion, standin_asset(), expression_basis="standin", size=256, backend=backend).astype(int)
    blue = (image[..., 2] > image[..., 0] + 20).reshape(256, 2, 256).sum(axis=(0, 2))
    assert blue[0] > 30 and blue[1] == 0


def test_both_backends_draw_the_same(backend):
    motion = talking(2, 9)[:, 4]
    ours, theirs = (
        render_frame(motion, standin_asset(), expression_basis="standin", size=SIZE, backend=name).astype(int)
        for name in ("numpy", backend)
    )
    assert np.abs(ours - theirs).mean() < 2.0


def test_motion_of_another_basis_shows_jaw_gaze_and_head_only(caplog):
    motion = talking(1, 9)[:, 4]
    expressive = motion.copy()
    expressive[:, :100] = 2.0
    caplog.set_level(logging.WARNING, "unils_jax")
    plain, foreign, own = (
        render_frame(m, standin_asset(), expression_basis=basis, size=SIZE, backend="numpy")
        for m, basis in ((motion, "standin"), (expressive, "flame"), (expressive, "standin"))
    )
    assert np.array_equal(plain, foreign) and not np.array_equal(plain, own)
    assert caplog.text.count("only jaw, gaze and head") == 1


def test_vertices_come_in_pieces_that_join_without_a_seam():
    motion = talking(2, render.CHUNK_FRAMES + 7)
    pieces = np.stack(list(render._frames_of_vertices(standin_asset(), motion)), axis=1)
    np.testing.assert_allclose(pieces, vertices(standin_asset(), jnp.asarray(motion), head_rotation=True), atol=1e-6)


def test_a_failure_leaves_the_video_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "v.mp4"
    path.write_bytes(b"before")

    def fail(*_):
        raise RuntimeError("no more pictures")

    monkeypatch.setattr(render._NumpyCanvas, "draw", fail)
    with pytest.raises(RuntimeError):
        render_video(path, talking(1, 3), standin_asset(), expression_basis="standin", size=64, backend="numpy")
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_captions_are_drawn_at_the_foot_of_their_tile(tmp_path):
    videos = [tmp_path / "plain.mp4", tmp_path / "named.mp4"]
    for path, captions in zip(videos, (None, ["", "listening"]), strict=True):
        render_video(
            path,
            talking(2, 2),
            standin_asset(),
            expression_basis="standin",
            size=SIZE,
            backend="numpy",
            captions=captions,
        )
    plain, named = (decode_video(path)[0][0].astype(int) for path in videos)
    changed = np.abs(plain - named).max(axis=-1) > 60
    assert changed[-SIZE // 5 :, SIZE:].any() and not changed[:, :SIZE].any() and not changed[: SIZE // 2].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"motion": np.zeros((1, 3, 107), np.float32)}, "108"),
        ({"motion": np.full((1, 3, 108), np.nan, np.float32)}, "NaN"),
        ({"motion": np.zeros((1, 0, 108), np.float32)}, "not empty"),
        ({"size": 129}, "even"),
        ({"audio": [np.zeros(9, np.float32)] * 3}, "one or two"),
        ({"audio": [np.full(9, np.inf, np.float32)]}, "finite"),
        ({"captions": ["a", "b"]}, "captions"),
        ({"backend": "opengl"}, "backend"),
        ({"path": "v.avi"}, r"\.mp4"),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path, change, message):
    given = {"path": "v.mp4", "motion": talking(1, 3), "size": 64, "expression_basis": "standin", **change}
    path, motion = tmp_path / given.pop("path"), given.pop("motion")
    with pytest.raises((UserError, TypeError), match=message):
        render_video(path, motion, standin_asset(), **given)
    assert not list(tmp_path.iterdir())


def test_the_command_renders_and_says_so_in_one_line(tmp_path, capsys):
    save_motion(tmp_path / "m.npz", talking(2, 10), expression_basis="standin", source={})
    write_wav(tmp_path / "a.wav", tone(440, 0.4))
    words = ["render", str(tmp_path / "m.npz"), "--video", str(tmp_path / "v.mp4"), "--audio", str(tmp_path / "a.wav")]
    assert main([*words, "--size", "64"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'v.mp4'}: 2 head(s), 0.4 s")
    images, sound = decode_video(tmp_path / "v.mp4")
    assert images.shape == (10, 64, 128, 3) and np.abs(sound[0] - sound[1]).max() < 0.02, "one track is heard on both"


def test_the_command_refuses_what_is_missing(tmp_path, capsys):
    for words in (["none.npz"], ["none.npz", "--audio2", "b.wav"], ["none.npz", "--flame", "none.pkl"]):
        assert main(["render", *words, "--video", str(tmp_path / "v.mp4")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("unils: error: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
