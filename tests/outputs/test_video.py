import ctypes.util
import importlib.util
import logging
import os
import subprocess
import sys

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.synthetic.conversation import SynthConfig
from data_pipelines.synthetic.dataset import make_conversation
from unils_jax.audio import frame_loudness, write_wav
from unils_jax.cli.main import main
from unils_jax.errors import UserError
from unils_jax.face.flame import vertices
from unils_jax.face.standin import standin_asset
from unils_jax.motion import HEAD, JAW, SAMPLE_RATE, STANDIN_SHAPES, center_head, save_motion
from unils_jax.outputs import canvas
from unils_jax.outputs import video as render
from unils_jax.outputs.drawn_head import standin_head
from unils_jax.outputs.video import render_frame, render_video

SIZE = 128
MOUTH = (slice(int(0.62 * SIZE), int(0.86 * SIZE)), slice(int(0.35 * SIZE), int(0.65 * SIZE)))


@pytest.fixture(params=canvas.BACKENDS)
def backend(request) -> str:
    if request.param == "pyvista" and not canvas.pyvista_works():
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


def test_a_video_moves(tmp_path, backend):
    motion = np.zeros((1, 6, 108), np.float32)
    motion[:, 3:, JAW] = 0.3
    path = tmp_path / "moves.mp4"
    render_video(path, motion, standin_asset(), expression_basis="standin", size=SIZE, backend=backend)
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24")[MOUTH].astype(int) for frame in container.decode(video=0)]
    assert np.abs(frames[5] - frames[0]).max() > 60
    assert np.abs(frames[2] - frames[0]).max() < 50


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
    motion = talking(2, render.PIECE_ROWS // 2 + 3)
    head = standin_head()
    pieces = np.stack(list(render._frames_of_vertices(head, motion)), axis=1)
    pose = jax.jit(vertices, static_argnums=0, static_argnames="head_rotation")
    turned, still = (pose(head.asset, jnp.asarray(motion), head_rotation=turns) for turns in (True, False))
    whole, shoulders = head.follow == 1, head.follow == 0
    assert whole.sum() > 9000 and shoulders.any()
    np.testing.assert_allclose(pieces[:, :, whole], turned[:, :, whole], atol=1e-6)
    np.testing.assert_allclose(pieces[:, :, shoulders], still[:, :, shoulders], atol=1e-6)


def test_a_failure_leaves_the_video_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "v.mp4"
    path.write_bytes(b"before")

    def fail(*_):
        raise RuntimeError("no more pictures")

    monkeypatch.setattr(canvas.NumpyCanvas, "draw", fail)
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


def test_truth_stands_beside_one_person_and_below_two(tmp_path):
    """With its own motion, in the same colours; shorter truth holds its last frame."""
    motion, truth = talking(2, 5), np.zeros((2, 3, 108), np.float32)
    truth[..., JAW] = 0.3
    for people, shape in ((1, (SIZE, 2 * SIZE)), (2, (2 * SIZE, 2 * SIZE))):
        render_video(
            tmp_path / "v.mp4",
            np.zeros_like(motion)[:people],
            standin_asset(),
            expression_basis="standin",
            size=SIZE,
            backend="numpy",
            truth=truth[:people],
            captions=[""] * people,
        )
        image = decode_video(tmp_path / "v.mp4")[0][-1].astype(int)
        assert image.shape[:2] == shape
        below = image[SIZE:, :SIZE] if people == 2 else image[:, SIZE:]
        shut, opened = ((tile[MOUTH].max(axis=-1) < 80).sum() for tile in (image[:SIZE, :SIZE], below))
        assert opened > shut + 30
        assert np.abs(image[: SIZE // 4, :SIZE] - below[: SIZE // 4]).mean() < 3, "the same hair"


def test_full_hd_is_1920_by_1080_for_one_two_and_four_heads(tmp_path):
    for people, truth, shape in ((1, None, (1080, 1920)), (2, talking(2, 1), (540, 960))):
        canvas_tiles = render._tiles(people, truth is not None, render.FULL_HD, problems := [])
        assert (
            not problems and canvas_tiles.shape == (1080, 1920) and (canvas_tiles.height, canvas_tiles.width) == shape
        )
    render_video(
        tmp_path / "v.mp4",
        talking(2, 1),
        standin_asset(),
        expression_basis="standin",
        size=render.FULL_HD,
        backend="numpy",
    )
    assert decode_video(tmp_path / "v.mp4")[0].shape == (1, 1080, 1920, 3)


def test_captions_say_who_speaks_and_change_with_it(tmp_path):
    speaking = np.array([[True, True, False, False]])
    render_video(
        tmp_path / "v.mp4",
        np.zeros((1, 4, 108), np.float32),
        standin_asset(),
        expression_basis="standin",
        size=SIZE,
        backend="numpy",
        speaking=speaking,
        captions=["Ada"],
    )
    foot = decode_video(tmp_path / "v.mp4")[0][:, -SIZE // 8 :].astype(int)
    assert np.abs(foot[0] - foot[1]).max() < 60 < np.abs(foot[1] - foot[2]).max()
    labels = render._labels(render._tiles(2, True, SIZE, []), ["Ada", ""], speaking.repeat(2, axis=0), True)
    masks = [labels(t).reshape(2, SIZE, 2, SIZE).max(axis=(1, 3)) for t in (0, 3)]
    assert all((mask[:, 0] > 0.5).all() and not mask[:, 1].any() for mask in masks)
    assert np.abs(labels(0) - labels(3)).max() > 0.5


def test_held_out_speech_opens_the_mouth_that_is_drawn_with_its_loudness():
    """Dark pixels between the lips against the loudness of the own voice while it speaks; a seed no set is made of."""
    record = make_conversation(SynthConfig(minutes=0.2), 4242, 0)
    motion = center_head(record.motion).astype(np.float32)[:1]
    motion[..., HEAD] = 0.0  # the mouth stays in its box
    head = standin_head()
    tiles = canvas.Tiles(1, 1, SIZE, SIZE, [0])
    drawn = canvas.NumpyCanvas(head, tiles)
    times = np.flatnonzero(record.speech_mask[0])[::2]
    assert times.size > 30
    frames = list(render._frames_of_vertices(head, motion))
    dark = [(drawn.draw(frames[t])[MOUTH].max(axis=-1) < 80).sum() for t in times]
    loudness = frame_loudness(record.audio[0].astype(np.float32) / 32768)[times]
    assert np.corrcoef(dark, loudness)[0, 1] > 0.5


@pytest.mark.slow
def test_without_egl_osmesa_draws_and_is_named():
    if ctypes.util.find_library("OSMesa") is None or importlib.util.find_spec("pyvista") is None:
        pytest.skip("needs OSMesa and the extra `render`: apt-get install libosmesa6")
    program = "from unils_jax.outputs.canvas import graphics, pick_backend; print(graphics(pick_backend()))"
    environment = {**os.environ, "__EGL_VENDOR_LIBRARY_FILENAMES": "/nonexistent", "DISPLAY": ""}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.stdout == "pyvista on OSMesa\n", done.stderr


def test_where_nothing_draws_numpy_does_and_is_named(monkeypatch):
    monkeypatch.setattr(canvas, "window_class", lambda: None)
    assert canvas.graphics(canvas.pick_backend()) == "NumPy"
    with pytest.raises(UserError, match="libegl1"):
        canvas.pick_backend("pyvista")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"motion": np.zeros((1, 3, 107), np.float32)}, "108"),
        ({"motion": np.full((1, 3, 108), np.nan, np.float32)}, "NaN"),
        ({"motion": np.zeros((1, 0, 108), np.float32)}, "not empty"),
        ({"size": 129}, "even"),
        ({"size": (1919, 1080)}, "does not divide"),
        ({"truth": talking(2, 3)}, "as many people"),
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


def test_the_command_takes_truth_and_full_hd(tmp_path, capsys):
    for name in ("m", "t"):
        save_motion(tmp_path / f"{name}.npz", talking(1, 2), expression_basis="standin", source={})
    words = ["render", str(tmp_path / "m.npz"), "--video", str(tmp_path / "v.mp4"), "--truth", str(tmp_path / "t.npz")]
    assert main([*words, "--size", "1080p"]) == 0
    assert decode_video(tmp_path / "v.mp4")[0].shape == (2, 1080, 1920, 3)
    assert main([*words, "--size", "big"]) == 2
    assert "1080p" in capsys.readouterr().err


def test_the_command_refuses_what_is_missing(tmp_path, capsys):
    for words in (["none.npz"], ["none.npz", "--audio2", "b.wav"], ["none.npz", "--flame", "none.pkl"]):
        assert main(["render", *words, "--video", str(tmp_path / "v.mp4")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("unils: error: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
