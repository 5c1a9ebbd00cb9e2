"""One HTML file that shows a conversation: heads, sound, curves; it needs no other file.

It embeds the basis of shapes, quantised, and each frame's coefficients; the page's script poses
the head from them. The script is built from `viewer/src` by vite (`make viewer`); wheels carry
it.
"""

import base64
import html
import importlib.resources
import io
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import soundfile
from jaxtyping import Float
from scipy.signal import savgol_filter

from unils_jax.audio import speaking_frames
from unils_jax.errors import UserError, shown
from unils_jax.face.flame import FlameAsset
from unils_jax.files import check_output, write_text
from unils_jax.inference.finishing import finish, log_limits
from unils_jax.motion import (
    EXPRESSION,
    FPS,
    HEAD,
    MOTION_DIM,
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    STANDIN_SHAPES,
    WINDOW_FRAMES,
)
from unils_jax.outputs.drawn_head import DrawnHead, drawn_head, shown_motion

PEAKS_PER_S = 50
MOTION_STEP = 1e-4  # radians, or units of coefficient
# Steps of the basis in metres a unit of coefficient, fine for fewer than 50 shapes: the errors of a
# hundred shapes add up to 0.03 mm with the coarse one.
FEW_SHAPES, FINE_STEP, COARSE_STEP = 50, 2e-6, 1e-5
FLAME_STAMP = (
    "This file contains geometry of the FLAME head model (https://flame.is.tue.mpg.de), which is licensed by its "
    "makers. Anyone who holds, shares or publishes this file is bound by that licence."
)
FLAME_REFUSED = (
    "the page would contain FLAME's geometry, which is licensed: add --embed_flame if your licence allows it, "
    "or leave --flame away and the stand-in head is shown"
)
# The page may run its own script and nothing from anywhere else.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; media-src blob:"


@dataclass(frozen=True)
class PageSummary:
    """Bytes of the page; the rest after audio and script is head, motion and curves."""

    total: int
    audio: int  # base64 of FLAC
    script: int

    @property
    def motion(self) -> int:
        """The bytes that neither audio nor script takes."""
        return self.total - self.audio - self.script


def make_page(  # noqa: PLR0913 - a public entry point: its options are named
    path: str | os.PathLike,
    motion: Float[np.ndarray, "P T 108"],
    asset: FlameAsset,
    audio: Sequence[Float[np.ndarray, " _"]] | None = None,
    *,
    expression_basis: str,
    truth: Float[np.ndarray, "Q U 108"] | None = None,
    names: Sequence[str] | None = None,
    title: str = "conversation",
    embed_flame: bool = False,
    state: Literal["decoded", "finished", "raw"] = "decoded",
    window_frames: int = WINDOW_FRAMES,
) -> PageSummary:
    """Writes the page of one or two people at 25 frames a second, with their audio at 16 kHz.

    The file appears when it is whole. Motion of another basis than the head's moves jaw, gaze
    and head only, and the page says so.

    Args:
        path: The .html file.
        motion: The motion of one or two people.
        asset: The head.
        audio: One track a person, padded or cut to the motion; one alone plays on both ears, two
            left and right. None: a silent page.
        expression_basis: The basis of the motion.
        truth: Motion of the same basis, shown below and in the curves; it is cut to the motion,
            or holds its last frame. None shows none.
        names: A name for each person; None numbers them.
        title: The page's title.
        embed_flame: Allows FLAME's geometry in the file, which is licensed.
        state: "decoded": the motion is finished here, see `finish`. "finished": that was done
            before. "raw": it is shown as it is, and the page can smooth it.
        window_frames: Frames of the model's windows, whose borders `finish` mends.

    Raises:
        UserError: The output cannot be written, arrays have a wrong shape or are not finite,
            FLAME geometry without `embed_flame`, or the script has not been built.
    """
    path = check_output(path, ".html")
    script, licence = page_script()
    _check(motion, truth, audio, names, asset, embed_flame)
    if state == "decoded":
        finished = finish(motion, expression_basis, window_frames=window_frames)
        log_limits(finished, path)
        motion = finished.motion
    num_people, num_frames = motion.shape[:2]
    head = drawn_head(asset)
    displayed = shown_motion(motion.astype(np.float32), asset, expression_basis)
    notices = [FLAME_STAMP] if asset.name == "flame" else []
    if expression_basis != asset.name:
        notices.append(f"The motion has the {expression_basis} basis, this head has not: only jaw, gaze and head move.")
    # Coefficients of another basis would deform this head at random: they are left out.
    num_expression = asset.skinning.num_expression if expression_basis == asset.name else 0
    sound = None if audio is None else fitted_audio(audio, num_frames)
    blinks = expression_basis == asset.name == "standin"
    lids = [list(STANDIN_SHAPES).index(name) for name in ("blink_left", "blink_right")]
    title = shown(title)
    data = {
        "title": title,
        "fps": FPS,
        "numFrames": num_frames,
        "people": _people(names, sound, num_people, num_frames),
        "notices": notices,
        "head": packed_head(head, num_expression),
        "numExpression": num_expression,
        "blink": {"channels": lids, "full": STANDIN_SHAPES["blink_left"]} if blinks else None,
        "motion": packed_motion(displayed, num_expression),
        "truth": None,
        "smoothing": savgol_filter(np.eye(9), 9, 3, axis=0).ravel().tolist() if state == "raw" else None,
        "audio": None if sound is None else {"type": "audio/flac", "data": encode_flac(sound)},
    }
    if truth is not None:
        # The same length as the motion, so that one cursor serves both.
        fitted = truth.astype(np.float32)[:, :num_frames]
        fitted = np.pad(fitted, ((0, 0), (0, num_frames - fitted.shape[1]), (0, 0)), mode="edge")
        data["truth"] = packed_motion(shown_motion(fitted, asset, expression_basis, quiet=True), num_expression)
    page = page_html(title, data, script, licence, asset.name == "flame")
    write_text(path, page)
    return PageSummary(len(page.encode()), len(data["audio"]["data"]) if data["audio"] else 0, len(script.encode()))


def page_script(name: str = "viewer") -> tuple[str, str]:
    """Returns a page's script and the licence of the library in it.

    Raises UserError where they have not been built.
    """
    folder = importlib.resources.files("unils_jax.outputs.viewer") / "dist"
    script, licence = folder / f"{name}.js", folder / "LICENSE.three.txt"
    # The licence of three.js asks to be in every copy: without it no page is made either.
    if not script.is_file() or not licence.is_file():
        raise UserError(
            "the page's script is not built: run `make viewer` (needs Node 20.19 or newer), or install a wheel of "
            "unils_jax, which carries it; `unils render` makes a video without it"
        )
    return script.read_text(encoding="utf-8"), licence.read_text(encoding="utf-8")


def _check(
    motion: np.ndarray,
    truth: np.ndarray | None,
    audio: Sequence[np.ndarray] | None,
    names: Sequence[str] | None,
    asset: FlameAsset,
    embed_flame: bool,
) -> None:
    problems = []
    for name, value in (("motion", motion), ("truth", truth)):
        if value is None:
            continue
        if value.shape[-1] != MOTION_DIM or 0 in value.shape or not 1 <= len(value) <= 2:
            problems.append(f"{name} must be [1 or 2, frames, {MOTION_DIM}] and not empty, got {list(value.shape)}")
        elif not np.isfinite(value).all():
            problems.append(f"{name} holds NaN or infinite values; decode it again")
    for what, value in (("truth", truth), ("names", names)):
        if value is not None and len(value) != len(motion):
            problems.append(f"{what} must be of as many people as motion ({len(motion)}), got {len(value)}")
    if audio is not None and not 1 <= len(audio) <= len(motion):
        problems.append(f"audio must be one track a person at most ({len(motion)}), got {len(audio)}")
    elif audio is not None and not all(np.isfinite(track).all() for track in audio):
        problems.append("audio holds NaN or infinite samples")
    if asset.name == "flame" and not embed_flame:
        problems.append(FLAME_REFUSED)
    if problems:
        raise UserError("; ".join(problems))


def _packed(values: np.ndarray, step: np.ndarray | None = None) -> dict[str, Any]:
    """Packs an array for the page's script.

    The bytes are little-endian, sorted by significance (they repeat then), deflated.
    """
    # Bytes of one significance resemble one another: sorted, they deflate far better.
    stored = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<")))
    planes = stored.view(np.uint8).reshape(-1, stored.dtype.itemsize).T
    return {
        "type": values.dtype.name,
        "shape": list(values.shape),
        "step": None if step is None else step.tolist(),
        "data": base64.b64encode(zlib.compress(planes.tobytes())).decode(),
    }


def _quantised(values: np.ndarray, least: float = 1e-12) -> dict[str, Any]:
    """Rounds values to int16 multiples of one step, and packs them.

    The step is a 32,767th of the largest value, or `least` where that is more.
    """
    step = max(float(np.abs(values).max(initial=0)) / 32767, least)
    return _packed(np.round(values / step).astype(np.int16), np.array([step]))


def packed_motion(motion: np.ndarray, num_expression: int) -> dict[str, Any]:
    """Packs the coefficients that the page uses, [P, T, K + 8].

    Each channel has its own step. Values are differences from frame to frame (modulo 2^16),
    which are small.
    """
    # Differences wrap around in int16 as the page's sums do: nothing is lost where they overflow.
    used = np.concatenate([motion[..., EXPRESSION][..., :num_expression], motion[..., HEAD.start :]], axis=-1)
    step = np.maximum(np.abs(used).max(axis=(0, 1)).astype(np.float64) / 32767, MOTION_STEP)
    levels = np.round(used / step).astype(np.int16)
    return _packed(np.diff(levels, axis=1, prepend=np.int16(0)), step)


def packed_head(head: DrawnHead, num_expression: int) -> dict[str, Any]:
    """Packs a head with its leading shapes for a page's script."""
    s, asset = head.asset.skinning, head.asset
    basis = np.concatenate([s.basis[:num_expression], s.basis[s.num_expression :]])
    return {
        "faces": _packed(asset.faces.astype(np.uint16).ravel()),
        "template": _quantised(s.template),
        "basis": _quantised(basis, FINE_STEP if len(basis) < FEW_SHAPES else COARSE_STEP),
        "poseColumns": s.pose_columns.tolist(),
        "jointTemplate": s.joint_template.ravel().tolist(),
        "jointBasis": s.joint_basis[:num_expression].ravel().tolist(),
        "totalWeight": _packed(s.total_weight),
        "weights": _quantised(s.weights),
        "follow": _quantised(head.follow),
        "colors": _packed(head.colors),
        "gloss": _quantised(head.gloss),
        "lips": _packed(np.unique(asset.lips).astype(np.uint16)),
        "centre": list(head.centre),
        "half": head.half,
    }


def fitted_audio(audio: Sequence[np.ndarray], num_frames: int) -> list[np.ndarray]:
    """Pads or cuts each track to so many frames."""
    num_samples = num_frames * SAMPLES_PER_FRAME
    tracks = [np.asarray(track, np.float32)[:num_samples] for track in audio]
    return [np.clip(np.pad(track, (0, num_samples - track.size)), -1, 1) for track in tracks]


def encode_flac(tracks: list[np.ndarray]) -> str:
    """Encodes the tracks as FLAC in base64.

    FLAC has no delay to make up for, exact seeking and half the size of PCM, and every browser
    plays it.
    """
    file = io.BytesIO()
    soundfile.write(file, np.stack(tracks, axis=1), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return base64.b64encode(file.getvalue()).decode()


def _people(
    names: Sequence[str] | None, sound: list[np.ndarray] | None, num_people: int, num_frames: int
) -> list[dict[str, Any]]:
    people: list[dict[str, Any]] = [
        {"name": f"person {p + 1}" if names is None else shown(names[p]), "peaks": None, "speaking": None}
        for p in range(num_people)
    ]
    if sound is None:
        return people
    # One scale for all tracks: a quiet person must look quiet.
    loudest = max(float(np.abs(track).max()) for track in sound) or 1.0
    for person, track, mask in zip(people, sound, speaking_frames(sound), strict=False):
        peaks = np.abs(track).reshape(-1, SAMPLE_RATE // PEAKS_PER_S).max(axis=1) / loudest
        person["peaks"] = _packed(np.round(255 * peaks).astype(np.uint8))
        person["speaking"] = _packed(mask.astype(np.uint8))
    return people


def page_html(title: str, data: dict[str, Any], script: str, licence: str, flame: bool) -> str:
    """Joins page, data and script.

    In JSON a `<` is escaped, in scripts `</script`: nothing can end its element.
    """
    # The licence must survive in the file itself, whatever happens to the notice on the page.
    stamp = f'<meta name="licence-of-geometry" content="{html.escape(FLAME_STAMP)}">\n' if flame else ""
    embedded = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return (
        "<!doctype html>\n"
        f"<!-- The script holds three.js:\n\n{licence.replace('--', '- -')}-->\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{stamp}<title>{html.escape(title)}</title>\n</head>\n<body>\n"
        f'<script type="application/json" id="page-data">{embedded}</script>\n'
        "<script>" + script.replace("</script", "<\\/script") + "</script>\n</body>\n</html>\n"
    )
