"""One call for every system: the audio of a conversation in, motion out."""

import numpy as np
from flax import nnx
from jaxtyping import Float

from unils_jax.errors import UserError
from unils_jax.inference.sampling import ByScale, Sampling
from unils_jax.systems.base import OPTIONAL_INPUTS, Generated, Inputs, Loaded, Options, System
from unils_jax.systems.registry import system_of_model


def decode(  # noqa: PLR0913 (the public call: every argument but the audio is named and optional)
    checkpoint: Loaded | nnx.Module,
    own: Float[np.ndarray, " N"] | None,
    other: Float[np.ndarray, " N2"] | None = None,
    *,
    seed: int = 0,
    tau: ByScale | None = None,
    cfg: ByScale | None = None,
    top_p: float | None = None,
    people: int | None = None,
    style: Float[np.ndarray, "P F 108"] | None = None,
    prev: Float[np.ndarray, "P4 F2 108"] | None = None,
    other_motion: Float[np.ndarray, "*P2 T 108"] | None = None,
    annotation: str | None = None,
    identity: int | None = None,
    template: Float[np.ndarray, " D"] | None = None,
    num_frames: int | None = None,
    fps: int | None = None,
    dtype: str = "float32",
) -> Float[np.ndarray, "P3 T2 D2"]:
    """Decodes the motion of one person, or of both, from the audio of a conversation.

    The same call serves every system. Audio is 16 kHz mono. The same seed gives the same motion.
    Raises UserError for an argument that the system has no use for.

    Args:
        checkpoint: What `load` returned, or a module.
        own: The first person's track; None for a prior, which has no audio.
        other: The second person's track; None is silence.
        seed: Of systems that draw.
        tau: Temperature, one or a tuple with one for each scale; 0 is greedy. None, here and
            below: the checkpoint's own, of a module the defaults of `Sampling`.
        cfg: Guidance, one or a tuple with one for each scale; up to 1 is off.
        top_p: Nucleus per bit.
        people: 1 or 2; None is 2 where `other` is given, else 1. DualTalk's None is 1.
        style: Clips that set the style, of as many frames as condition the model's
            `window.context_frames`, 100 of the release; None is zero motion.
        prev: As many frames before the first; None is zero motion.
        other_motion: The partner's motion [T, 108] as tracked, or both people's [2, T, 108]; None
            is zero motion.
        annotation: Which annotation to predict; None is our motion, or the model's only one.
        identity: A row of the model's identities; None is the pivot.
        template: The neutral face of an annotation; None is zero.
        num_frames: How many frames a prior makes.
        fps: Frames per second of an annotation; None is the published rate.
        dtype: "float32" or "bfloat16".
    """
    if isinstance(checkpoint, nnx.Module):
        model, system, own_sampling = checkpoint, system_of_model(checkpoint), Sampling()
    else:
        # Where a model has several annotations, only the one to predict needs all of its weights.
        chosen = checkpoint.select(*(() if annotation is None else (annotation,)))
        model, system, own_sampling = chosen.model, chosen.system, chosen.sampling
    inputs = Inputs(own, other, other_motion, style, prev, annotation, identity, template, num_frames)
    if people is None:
        sees_partner = "other_motion" in system.inputs
        both = other is not None and (not sees_partner or (other_motion is not None and other_motion.ndim == 3))
        people = 2 if both else 1
    options = Options(own_sampling.but(tau, cfg, top_p), seed, people, dtype, fps)
    return generate(system, model, inputs, options).values


def generate(system: System, model: nnx.Module, inputs: Inputs, options: Options) -> Generated:
    """Generates with a system after checking that it reads all that is given.

    Raises UserError naming the inputs that it has no use for.
    """
    given = [name for name in OPTIONAL_INPUTS if getattr(inputs, name) is not None]
    useless = [name for name in given if name not in system.inputs]
    if useless:
        raise UserError(f"{system.title} has no use for {', '.join(useless)}; leave it away")
    if options.people == 2 and inputs.other_audio is None:
        raise UserError("two people need two tracks; give the other one, or decode one person")
    return system.generate(model, inputs, options)
