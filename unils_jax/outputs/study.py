"""The page of a user study: pairs of clips next to each other, judged by several criteria.

Like the page of `unils view` it is one file, which opens offline and may be put on any server of
static files. Its script (`viewer/src/study`) draws the order of the pairs and the sides by the
study's seed and the rater's name, and hands the answers out as JSON.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from unils_jax.errors import UserError, shown
from unils_jax.face.flame import FlameAsset
from unils_jax.files import check_output, write_text
from unils_jax.motion import FPS
from unils_jax.outputs.drawn_head import drawn_head, shown_motion
from unils_jax.outputs.page import (
    FLAME_REFUSED,
    FLAME_STAMP,
    encode_flac,
    fitted_audio,
    packed_head,
    packed_motion,
    page_html,
    page_script,
)

# Criteria of a study and the question that a rater reads.
CRITERIA = {
    "lips": "On which side do the lips fit the speech better?",
    "expression": "On which side do the expressions look more natural?",
    "reaction": "On which side does the listener react more naturally to the other person?",
    "head": "On which side does the head move more naturally?",
}


@dataclass(frozen=True)
class Pair:
    """A clip of a conversation as two systems move it."""

    name: str
    motions: tuple[Float[np.ndarray, "P T 108"], Float[np.ndarray, "P T 108"]]  # of systems a and b
    audio: list[Float[np.ndarray, " _"]]  # one or two tracks at 16 kHz


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """What is asked in a study."""

    systems: tuple[str, str] = ("A", "B")  # their names in the answers; the rater does not see them
    criteria: tuple[str, ...] = tuple(CRITERIA)
    num_checks: int = 2  # attention checks: a clip next to a face that does not move
    seed: int = 0  # of the order and the sides
    title: str = "Which face moves better?"

    def __post_init__(self):
        if self.systems[0] == self.systems[1]:
            raise UserError(f"both systems are called {self.systems[0]!r}; give two names with --names")
        unknown = sorted(set(self.criteria) - set(CRITERIA))
        if unknown or not self.criteria or len(set(self.criteria)) < len(self.criteria):
            given = " ".join(self.criteria)
            raise UserError(f"criteria must be some of {', '.join(CRITERIA)}, each once, got {given!r}")


def make_study(
    path: str | os.PathLike,
    pairs: Sequence[Pair],
    asset: FlameAsset,
    options: StudyOptions,
    *,
    expression_basis: str,
    embed_flame: bool = False,
) -> int:
    """Writes the page of a study and returns its size in bytes.

    Args:
        path: The .html file.
        pairs: The clips. Motion is shown as it is: finish it before.
        asset: The head. It shows only jaw, gaze and head of motion in another basis.
        options: What is asked.
        expression_basis: The basis of all motion.
        embed_flame: Allows FLAME's geometry in the file, which is licensed.

    Raises:
        UserError: There are fewer clips than checks or none, the output cannot be written, FLAME
            geometry without `embed_flame`, or the script has not been built.
    """
    path = check_output(path, ".html")
    script, licence = page_script("study")
    if not pairs or not 0 <= options.num_checks <= len(pairs):
        raise UserError(f"a study has a clip or more, and at most as many checks: {len(pairs)}, {options.num_checks}")
    if asset.name == "flame" and not embed_flame:
        raise UserError(FLAME_REFUSED)
    num_expression = asset.skinning.num_expression if expression_basis == asset.name else 0
    notices = [FLAME_STAMP] if asset.name == "flame" else []
    clips = [_clip(pair, asset, expression_basis, num_expression) for pair in pairs]
    checked = np.random.default_rng(options.seed).permutation(len(pairs))[: options.num_checks]
    checks = [{"clip": int(clip), "system": "ab"[i % 2]} for i, clip in enumerate(checked)]
    study = {
        "systems": dict(zip("ab", options.systems, strict=True)),
        "seed": options.seed,
        "clips": [pair.name for pair in pairs],
        "num_checks": options.num_checks,
    }
    # Answers of another study, or of the same with other clips, must not be mixed with these.
    of = json.dumps([study, options.criteria, clips, checks, expression_basis], sort_keys=True)
    title = shown(options.title)
    data = {
        "study": {"id": hashlib.sha256(of.encode()).hexdigest()[:12], **study},
        "criteria": [{"name": name, "question": CRITERIA[name]} for name in options.criteria],
        "title": title,
        "fps": FPS,
        "notices": notices,
        "head": packed_head(drawn_head(asset), num_expression),
        "numExpression": num_expression,
        "clips": clips,
        "checks": checks,
    }
    page = page_html(title, data, script, licence, asset.name == "flame")
    write_text(path, page)
    return len(page.encode())


def _clip(pair: Pair, asset: FlameAsset, expression_basis: str, num_expression: int) -> dict[str, object]:
    displayed = [
        shown_motion(motion.astype(np.float32), asset, expression_basis, quiet=True) for motion in pair.motions
    ]
    num_frames = displayed[0].shape[1]
    return {
        "name": pair.name,
        "numFrames": num_frames,
        "audio": {"type": "audio/flac", "data": encode_flac(fitted_audio(pair.audio, num_frames))},
        "motions": {
            system: packed_motion(motion, num_expression) for system, motion in zip("ab", displayed, strict=True)
        },
    }
