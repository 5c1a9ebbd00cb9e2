"""One call from motion to video."""

import logging
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from unils_jax.errors import UserError
from unils_jax.face.head import load_head
from unils_jax.inference.finishing import finish_file
from unils_jax.motion import MotionFile, load_motion
from unils_jax.outputs.video import RenderSummary, render_video

log = logging.getLogger(__name__)


def render(
    path: str | os.PathLike,
    motion: str | os.PathLike | Float[np.ndarray, "P T 108"],
    audio: Sequence[np.ndarray] | None = None,
    *,
    expression_basis: str | None = None,
    flame: str | os.PathLike | None = None,
    size: int | tuple[int, int] = 512,
    raw: bool = False,
) -> RenderSummary:
    """Renders motion as a video, the people side by side. Motion is finished, see `finish`.

    Args:
        path: The .mp4 to write.
        motion: A motion file, or an array.
        audio: One or two tracks at 16 kHz, left and right.
        expression_basis: Of an array; None is the basis of the head. A file knows its own.
        flame: FLAME's generic_model.pkl; None draws the stand-in head.
        size: The side of a person's square, or (width, height) of the picture, in pixels.
        raw: Shows motion as it is, which is also what an array needs that was finished before.
    """
    head = load_head(flame)
    if isinstance(motion, str | os.PathLike):
        file = load_motion(motion)
        if expression_basis not in (None, file.expression_basis):
            raise UserError(f"{motion} is of the {file.expression_basis!r} basis, got {expression_basis!r}")
    else:
        file = MotionFile(motion, expression_basis or head.name, {})
    file, notice = finish_file(file, path, raw=raw)
    summary = render_video(path, file.motion, head, audio, expression_basis=file.expression_basis, size=size)
    if notice:
        log.info(notice)
    return summary
