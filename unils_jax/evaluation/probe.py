"""A look at the model while it trains: it decodes a few held-out conversations on its own, is scored, and filmed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from flax import nnx

from unils_jax.evaluation.protocols import Conversation, Protocol, generate_with, people_to_score
from unils_jax.evaluation.scoring import Mesh, score_person
from unils_jax.face.flame import FlameAsset
from unils_jax.nn.params import Params, merge
from unils_jax.outputs.video import render_video
from unils_jax.systems.base import System

# The release's validation during training: its protocol with stronger guidance.
VALIDATION = Protocol("validation", num_people=1, held_out_style=False, cfg=2.0)
# What a motion that answers no audio can be held against: how much it moves, not where it is.
_DYNAMICS = ("FDD", "PDD", "JDD")


def make_probe(
    system: System,
    graphdef: nnx.GraphDef,
    conversations: list[Conversation],
    *,
    mesh: Mesh | None,
    expression_basis: str,
    clips: tuple[Path, FlameAsset] | None = None,
) -> Callable[[int, Params], dict[str, float]]:
    """The function `probe(step, params) -> figures` of a prior or a dialogue.

    The first person of every conversation is decoded free-running (dialogue: from both tracks' audio; prior: from the
    style clip alone) and scored with the metrics of the UniLS family, as `unils/<role>/<name>`; means over the
    conversations that define a figure. With `clips` (a folder and a head) the first conversation is rendered into
    `<folder>/step_<step>.mp4`.
    """

    def probe(step: int, params: Params) -> dict[str, float]:
        model = merge(graphdef, params)
        predict = generate_with(system, model, VALIDATION)
        rows: list[dict[str, float]] = []
        for i, conversation in enumerate(conversations):
            motion = predict(conversation, VALIDATION.seed)
            for person in people_to_score(conversation, motion, VALIDATION):
                figures = score_person(person, mesh, expression_basis)[0]
                rows.append({name: value for name, value in figures.items() if name.startswith("unils/")})
            if clips is not None and i == 0:
                folder, head = clips
                path = folder / f"step_{step}.mp4"
                render_video(path, motion, head, conversation.audio, expression_basis=expression_basis)
        if model.audio_encoder is None:
            rows = [{n: v for n, v in row.items() if n.endswith(_DYNAMICS)} for row in rows]
        columns = {name: [row[name] for row in rows if np.isfinite(row[name])] for name in rows[0]}
        return {name: float(np.mean(values)) for name, values in columns.items() if values}

    return probe
