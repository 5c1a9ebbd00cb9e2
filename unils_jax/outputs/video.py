"""Motion as pictures and video: heads in tiles, H.264 with the conversation's audio."""

import functools
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from unils_jax.errors import UserError
from unils_jax.face.flame import FlameAsset, vertices
from unils_jax.files import atomic_output, check_output
from unils_jax.motion import FPS, MOTION_DIM, SAMPLE_RATE, SAMPLES_PER_FRAME
from unils_jax.outputs.canvas import Tiles, graphics, make_canvas, pick_backend
from unils_jax.outputs.drawn_head import DrawnHead, drawn_head, shown_motion

log = logging.getLogger(__name__)

PIECE_ROWS = 48  # heads posed at a time
FULL_HD = (1920, 1080)


@dataclass(frozen=True)
class RenderSummary:
    """The figures of a rendered video."""

    num_frames: int  # of video
    elapsed_s: float
    frames_per_s: float  # all heads drawn and encoded
    backend: str
    graphics: str  # what drew behind the backend


@functools.partial(jax.jit, static_argnums=(0, 1))
def _posed(asset: FlameAsset, turns_whole: bool, motion: jax.Array, follow: jax.Array) -> jax.Array:
    turned = vertices(asset, motion, head_rotation=True)
    if turns_whole:
        return turned
    # Shoulders do not turn with the head: each vertex goes its own part of the way.
    still = vertices(asset, motion, head_rotation=False)
    return still + follow[None, :, None] * (turned - still)


def _frames_of_vertices(head: DrawnHead, motion_PTM: np.ndarray) -> Iterator[np.ndarray]:
    """Yields [P, V, 3] frame by frame.

    All pieces have one shape, for any P and T: memory does not grow with time, and the program
    is compiled once a head.
    """
    num_people, num_frames = motion_PTM.shape[:2]
    piece_frames = max(1, PIECE_ROWS // num_people)
    turns_whole, follow = bool((head.follow == 1).all()), jnp.asarray(head.follow)
    for start in range(0, num_frames, piece_frames):
        piece = motion_PTM[:, start : start + piece_frames].swapaxes(0, 1).reshape(-1, MOTION_DIM)
        # The last piece is padded, too: another shape would compile the program again.
        padded = np.pad(piece, ((0, max(0, PIECE_ROWS - len(piece))), (0, 0)))
        points = np.asarray(_posed(head.asset, turns_whole, jnp.asarray(padded), follow))
        for row in range(0, len(piece), num_people):
            yield points[row : row + num_people]


def _problems(motion: np.ndarray, name: str) -> list[str]:
    if motion.shape[-1] != MOTION_DIM or 0 in motion.shape:
        return [f"{name} must be [people, frames, {MOTION_DIM}] and not empty, got {list(motion.shape)}"]
    if not np.isfinite(motion).all():
        return [f"{name} holds NaN or infinite values; decode it again"]
    return []


def _tiles(num_people: int, with_truth: bool, size: int | tuple[int, int], problems: list[str]) -> Tiles:
    """Returns the grid of tiles, and adds what is wrong with `size` to `problems`.

    People are side by side, truth next to one person and below several.
    """
    below = with_truth and num_people > 1
    rows, columns = 2 if below else 1, num_people * (2 if with_truth and not below else 1)
    palettes = list(range(num_people)) * (2 if with_truth else 1)
    if isinstance(size, int):
        if size % 2 or not 64 <= size <= 2048:
            problems.append(f"size must be an even number from 64 to 2048, got {size}; 512 is usual")
        return Tiles(rows, columns, size, size, palettes)
    width, height = size
    # H.264 with 4:2:0 colour needs even sides, and so does every tile's cut.
    if width % (2 * columns) or height % (2 * rows) or min(width // columns, height // rows) < 64:
        problems.append(f"a picture of {width} x {height} does not divide into {columns} x {rows} tiles of even size")
    return Tiles(rows, columns, width // columns, height // rows, palettes)


def render_frame(
    motion: Float[np.ndarray, "P 108"],
    asset: FlameAsset,
    *,
    expression_basis: str,
    size: int | tuple[int, int] = 512,
    backend: str | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws one picture of P heads side by side, RGB.

    `size` and errors are those of `render_video`.
    """
    problems = _problems(motion, "motion")
    tiles = _tiles(len(motion), False, size, problems)
    if problems:
        raise UserError("; ".join(problems))
    shown = shown_motion(motion.astype(np.float32), asset, expression_basis)
    head = drawn_head(asset)
    canvas = make_canvas(pick_backend(backend), head, tiles)
    try:
        return canvas.draw(next(_frames_of_vertices(head, shown[:, None])))
    finally:
        canvas.close()


def render_video(  # noqa: PLR0913 - a public entry point: its options are named
    path: str | os.PathLike,
    motion: Float[np.ndarray, "P T 108"],
    asset: FlameAsset,
    audio: Sequence[Float[np.ndarray, " _"]] | Float[np.ndarray, "Q N"] | None = None,
    *,
    expression_basis: str,
    size: int | tuple[int, int] = 512,
    captions: Sequence[str] | None = None,
    speaking: Bool[np.ndarray, "P T"] | None = None,
    truth: Float[np.ndarray, "Q U 108"] | None = None,
    backend: str | None = None,
) -> RenderSummary:
    """Writes an .mp4 of `motion` at 25 frames a second, one tile a person, with the audio.

    The file appears when it is whole; audio starts with its first sample.

    Args:
        path: The .mp4 file.
        motion: The motion of all people.
        asset: The head.
        audio: One or two tracks at 16 kHz, left and right channel, padded or cut to the motion;
            one alone is on both. None: a silent video.
        expression_basis: The basis of motion and truth.
        size: The side of a square tile, or (width, height) of the whole picture, in pixels.
        captions: A name for each person; an empty one leaves its tile bare. None numbers people
            where there is text to show.
        speaking: The speech mask; the role follows the name. None shows no role.
        truth: Motion shown next to one person and below several; it is cut to the motion, or
            holds its last frame. None shows none.
        backend: "pyvista" or "numpy"; None takes the best that works here.

    Raises:
        UserError: The output cannot be written, motion has a wrong shape or is not finite, the
            size cannot be encoded, there are over two tracks, or the backend is unknown.
    """
    # Everything that can be wrong is found before the first frame is drawn, and named at once.
    path = check_output(path, ".mp4")
    num_people, num_frames = motion.shape[:2]
    problems = _problems(motion, "motion")
    if truth is not None:
        problems += _problems(truth, "truth")
        if len(truth) != num_people:
            problems.append(f"truth must be of as many people as motion ({num_people}), got {len(truth)}")
    if captions is not None and len(captions) != num_people:
        problems.append(f"captions must name every person: {num_people}, got {len(captions)}")
    tiles = _tiles(num_people, truth is not None, size, problems)
    if problems:
        raise UserError("; ".join(problems))
    stereo = None if audio is None else _stereo(audio, num_frames)
    backend, head = pick_backend(backend), drawn_head(asset)
    drawn_by = graphics(backend)
    log.info("rendering %d frames of %d head(s) with %s", num_frames, len(tiles.palettes), drawn_by)
    shown = np.asarray(motion, np.float32)
    if truth is not None:
        shown = np.concatenate([shown, _fitted(np.asarray(truth, np.float32), num_frames)])
    shown = shown_motion(shown, asset, expression_basis)
    labels = _labels(tiles, captions, speaking, truth is not None)
    started = time.perf_counter()
    canvas = make_canvas(backend, head, tiles)
    try:
        with atomic_output(path) as partial:
            points = _frames_of_vertices(head, shown)
            images = (_captioned(canvas.draw(heads), labels(t)) for t, heads in enumerate(points))
            _encode(partial, images, stereo, tiles.shape, num_frames)
    finally:
        canvas.close()
    elapsed_s = time.perf_counter() - started
    return RenderSummary(num_frames, elapsed_s, num_frames / elapsed_s, backend, drawn_by)


def _fitted(motion: np.ndarray, num_frames: int) -> np.ndarray:
    motion = motion[:, :num_frames]
    return np.pad(motion, ((0, 0), (0, num_frames - motion.shape[1]), (0, 0)), mode="edge")


def _stereo(audio: Sequence[np.ndarray] | np.ndarray, num_frames: int) -> np.ndarray:
    """Returns [2, N] float32 in [-1, 1], exactly as long as the video."""
    tracks = [np.asarray(track, np.float32) for track in audio]
    if not 1 <= len(tracks) <= 2 or any(track.ndim != 1 or not np.isfinite(track).all() for track in tracks):
        raise UserError(f"audio must be one or two finite mono tracks, got {[list(t.shape) for t in tracks]}")
    num_samples = num_frames * SAMPLES_PER_FRAME
    fitted = [np.pad(track[:num_samples], (0, max(0, num_samples - track.size))) for track in tracks]
    return np.clip(np.stack([fitted[0], fitted[-1]]), -1.0, 1.0)


def _encode(
    path: Path, images: Iterator[np.ndarray], stereo: np.ndarray | None, shape: tuple[int, int], num_frames: int
) -> None:
    """Encodes H.264 and AAC.

    The audio of a frame goes in with the frame, so that players need not search.
    """
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        video = container.add_stream("libx264", rate=Fraction(FPS), options={"preset": "veryfast", "crf": "20"})
        video.height, video.width, video.pix_fmt = *shape, "yuv420p"
        sound = None
        if stereo is not None:
            # FFmpeg's default AAC search spoils the first 64 ms of one channel: an error of 0.04 in
            # a tone of 0.28, 2e-4 with this one.
            coder = {"aac_coder": "fast"}
            sound = container.add_stream("aac", rate=SAMPLE_RATE, layout="stereo", bit_rate=96_000, options=coder)
        for t, image in enumerate(tqdm(images, "render", num_frames, disable=None, unit="frame")):
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            if sound is not None and stereo is not None:
                piece = stereo[:, t * SAMPLES_PER_FRAME : (t + 1) * SAMPLES_PER_FRAME]
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece), format="fltp", layout="stereo")
                frame.sample_rate, frame.pts = SAMPLE_RATE, t * SAMPLES_PER_FRAME
                frame.time_base = Fraction(1, SAMPLE_RATE)
                container.mux(sound.encode(frame))
        # None flushes what the encoders still hold.
        container.mux(video.encode(None))
        if sound is not None:
            container.mux(sound.encode(None))


def _labels(
    tiles: Tiles, captions: Sequence[str] | None, speaking: np.ndarray | None, with_truth: bool
) -> Callable[[int], np.ndarray | None]:
    """Returns a function from a frame to the text mask of that frame, or to None.

    The mask is the coverage [height, width, 1] of a line of text at the foot of every tile.
    """
    num_people = len(tiles.palettes) // (2 if with_truth else 1)
    if captions is None and speaking is None and not with_truth:
        return lambda t: None
    names = [f"person {p + 1}" for p in range(num_people)] if captions is None else captions

    # Captions change when a role does, not every frame.
    @functools.lru_cache(maxsize=16)
    def strip(texts: tuple[str, ...]) -> np.ndarray:
        return _caption_strip(texts, tiles)

    def at(t: int) -> np.ndarray:
        texts = []
        for i in range(len(tiles.palettes)):
            parts = [names[i % num_people]]
            if not parts[0]:
                texts.append("")
                continue
            if with_truth:
                parts.append("predicted" if i < num_people else "truth")
            if speaking is not None:
                parts.append("speaking" if speaking[i % num_people, t] else "listening")
            texts.append(", ".join(parts))
        return strip(tuple(texts))

    return at


def _caption_strip(texts: Sequence[str], tiles: Tiles) -> np.ndarray:
    height, width = tiles.shape
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(max(10, min(tiles.height // 24, tiles.width // 18)))
    for i, text in enumerate(texts):
        row, column = divmod(i, tiles.columns)
        foot = ((column + 0.5) * tiles.width, (row + 0.97) * tiles.height)
        draw.text(foot, text, fill=255, font=font, anchor="ms")
    return np.asarray(canvas, np.float32)[..., None] / 255.0


def _captioned(image: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    return image if labels is None else (image * (1.0 - labels) + 235.0 * labels).astype(np.uint8)
