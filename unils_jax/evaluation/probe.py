"""Decodes held-out conversations free-running while the model trains, and scores and films them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from flax import nnx

from unils_jax.evaluation.protocols import Conversation, Predict, Protocol, decode_with, people_to_score
from unils_jax.evaluation.scoring import Mesh, score_person
from unils_jax.face.flame import FlameAsset
from unils_jax.inference.conversations import Sampling, decode_prior
from unils_jax.models.unils import UniLS
from unils_jax.motion import WINDOW_FRAMES
from unils_jax.nn.params import Params, merge
from unils_jax.outputs.video import render_video

# The release's validation during training: its protocol with stronger guidance.
VALIDATION = Protocol("validation", num_people=1, held_out_style=False, cfg=2.0)
# Figures of how much a motion moves, not of where it is.
_DYNAMICS = ("FDD", "PDD", "JDD")


def decode_prior_with(model: UniLS, protocol: Protocol) -> Predict:
    """Returns a `Predict` that decodes the protocol's people from their style alone.

    It decodes as many frames as the conversation has.
    """
    sampling = Sampling(protocol.tau, protocol.cfg, protocol.top_p)

    def predict(conversation: Conversation, seed: int) -> np.ndarray:
        frames, style = conversation.motion.shape[1], conversation.style[: protocol.num_people]
        return decode_prior(model, style, -(-frames // WINDOW_FRAMES), sampling=sampling, seed=seed)[:, :frames]

    return predict


def make_free_running_eval(
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
        graphdef: The model's structure; `params` are all of its parameters.
        conversations: What is decoded and scored.
        mesh: The head to measure on; None leaves out the figures that need vertices.
        expression_basis: The basis of the motion.
        clips: A folder and a head; the first conversation is rendered into
            `<folder>/step_<step>.mp4`. None renders nothing.
    """

    def free_running_eval(step: int, params: Params) -> dict[str, float]:
        model = merge(graphdef, params)
        predict = (decode_prior_with if model.audio_encoder is None else decode_with)(model, VALIDATION)
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
