"""UniTalker: its loss, noise and training stage."""

import re
from collections.abc import Iterable

import jax.numpy as jnp
from jax import Array

from unils_jax.nn.layers import RandomKey
from unils_jax.systems.base import (
    Batch,
    Card,
    GlobalBatch,
    GradientMask,
    Metrics,
    Objective,
    Stage,
    System,
    batch_sample_weights,
)
from unils_jax.systems.unitalker import clips, heads, training
from unils_jax.systems.unitalker.annotations import FORMS, NUMBERS, lip_errors, talker_losses
from unils_jax.systems.unitalker.inference import STRIDE_S, WINDOW_S, generate
from unils_jax.systems.unitalker.layout import LAYOUT
from unils_jax.systems.unitalker.model import TalkerNoise, UniTalker, UniTalkerConfig


def _settings(objective: Objective) -> training.TalkerObjective:
    return objective.system or training.TalkerObjective()


def unitalker_loss(
    model: UniTalker, batch: Batch, noise: TalkerNoise | None, objective: Objective, whole: GlobalBatch | None = None
) -> tuple[Array, Metrics]:
    """Computes UniTalker's loss of a batch of one annotation, in the units of its space.

    In evaluation it reports lip errors too, by annotation.
    """
    annotation, motion, template = batch.annotation, batch["motion"], batch["template"]
    sample_weights = (whole or GlobalBatch(batch_sample_weights(batch))).sample_weights.items
    space = _settings(objective).spaces.get(annotation, NUMBERS)
    predicted = model(
        batch["audio"], template, batch["identity"], annotation, motion.shape[1], noise, objective.compute
    )
    true = model.truth_coefficients(motion, template, annotation)
    losses = talker_losses(space, predicted.motion, motion, predicted.coefficients, true, sample_weights)
    metrics = losses | {f"{annotation}/loss": losses["loss"]}
    if noise is None and space.lips is not None:
        errors = lip_errors(space, predicted.motion, motion)
        metrics |= {
            f"{annotation}/{name}": jnp.sum(sample_weights * e) for name, e in zip(("LVE", "LVD"), errors, strict=True)
        }
    return losses["loss"], metrics


def sample_talker_noise(key: RandomKey, batch: Batch, model: UniTalker, objective: Objective) -> TalkerNoise:
    """Draws dropout, skipped layers, time masks, and whether the batch is the pivot's."""
    return model.draw(key, *batch["audio"].shape, batch["motion"].shape[1], _settings(objective).pivot_rate)


def talker_gradient_mask(
    paths: Iterable[str], batch: Batch, noise: TalkerNoise | None, updates: Array, objective: Objective
) -> tuple[GradientMask, Array]:
    """Returns which parameters a step gives a gradient.

    Without one are heads of other annotations, skipped layers of the audio encoder, the embedding
    of masked frames where none is masked, and all of the encoder while it is frozen. When that ends
    the optimiser is made anew.
    """
    frozen_steps, head = _settings(objective).frozen_steps, f"heads/{batch.annotation}/"
    free, present = updates >= frozen_steps, {}
    for path in paths:
        if path.startswith("heads/"):
            present[path] = path.startswith(head)
        elif path.startswith("speech_encoder/"):
            present[path] = free
            layer = re.match(r"speech_encoder/blocks/(\d+)/", path)
            if noise is not None and layer:
                present[path] = free & ~noise.encoder.skipped[0, int(layer[1])]
            elif path.endswith("/masked_spec_embed"):
                present[path] = False if noise is None else free & noise.encoder.masked.any()
    return present, (updates == frozen_steps) & (frozen_steps > 0)


# All but the audio encoder's convolutions and the PCA.
UNITALKER_STAGE = Stage(
    "unitalker",
    None,
    "speech",
    r"(?!speech_encoder/convs/|pca/).*",
    unitalker_loss,
    sample_talker_noise,
    gradient_mask=talker_gradient_mask,
    item_frames=None,
    continues=True,
    uses_head=True,
    fit_config=training.fit_config,
    init=training.init,
    objective=training.objective,
    view_settings=training.view_settings,
)


def card(config: UniTalkerConfig, expression_basis: str) -> Card:
    """Returns the lines of a model card."""
    pairs = zip(config.annotations, config.dims, strict=True)
    annotations = ", ".join(f"`{name}` ({dim} numbers a frame)" for name, dim in pairs)
    encoder = config.audio_encoder
    return Card(
        "UniTalker: the audio of one person to motion in any of several annotations",
        f"Annotations: {annotations}; {config.num_identities} identities, the last is the pivot.",
        [
            f"{config.decoder} decoder of width {config.width}; {'WavLM' if config.wavlm else 'wav2vec2'} of width "
            f"{encoder.width} and depth {encoder.depth}, trained along and in this file"
        ],
    )


UNITALKER = System(
    name="unitalker",
    title="UniTalker",
    config=UniTalkerConfig,
    build=UniTalker,
    stages={UNITALKER_STAGE.name: UNITALKER_STAGE},
    inputs=frozenset({"audio", "other_audio", "annotation", "identity", "template"}),
    draws=False,
    generate=generate,
    layout=LAYOUT,
    card=card,
    settings=training.TalkerSettings,
    conditions={
        "heard": f"own audio alone, in windows of {WINDOW_S} s every {STRIDE_S} s, cross-faded",
        "identity": "the pivot",
    },
    forms=FORMS,
    select=heads.select,
    score_clips=clips.score_clips,
    lacks=heads.lacks,
    without_pca=heads.without_pca,
    with_pca=heads.with_pca,
)
