"""Decodes held-out conversations free-running while the model trains, and scores and films them."""

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
# Figures of how much a motion moves, not of where it is.
_DYNAMICS = ("FDD", "PDD", "JDD")


def make_free_running_eval(
    system: System,
    graphdef: nnx.GraphDef,
    conversations: list[Conversation],
    *,
    mesh: Mesh | None,
    expression_basis: str,
    clips: tuple[Path, FlameAsset] | None = None,
) -> Callable[[int, Params], dict[str, float]]:
    """Returns the function `free_running_eval(step, params) -> figures` of a prior or a dialogue.

    It decodes the first person of every conversation free-running (dialogue: from both tracks'
    audio; prior: from the style clip alone) and scores the motion with the metrics of the UniLS
    family, as `unils/<role>/<name>`. Each figure is the mean over the conversations that define it.

    Args:
        system: The system that the model is of.
        graphdef: The model's structure; `params` are all of its parameters.
        conversations: What is decoded and scored.
        mesh: The head to measure on; None leaves out the figures that need vertices.
        expression_basis: The basis of the motion.
        clips: A folder and a head; the first conversation is rendered into
            `<folder>/step_<step>.mp4`. None renders nothing.
    """

    def free_running_eval(step: int, params: Params) -> dict[str, float]:
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
        # A prior's motion answers no audio: only how much it moves compares with the truth.
        if model.audio_encoder is None:
            rows = [{n: v for n, v in row.items() if n.endswith(_DYNAMICS)} for row in rows]
        columns = {name: [row[name] for row in rows if np.isfinite(row[name])] for name in rows[0]}
        return {name: float(np.mean(values)) for name, values in columns.items() if values}

    return free_running_eval
