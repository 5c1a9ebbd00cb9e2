"""UniTalker on audio of any length: windows of 25 s every 20 s, run alone and cross-faded.

Source: the release's demo. Shorter audio is one window.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from unils_jax.errors import UserError
from unils_jax.models.wavlm import WavLM
from unils_jax.motion import FPS, MOTION_KIND, SAMPLE_RATE
from unils_jax.nn.params import Params, merge, split
from unils_jax.nn.stack import Compute
from unils_jax.systems.base import Generated, Inputs, Options
from unils_jax.systems.unitalker.model import UniTalker, frames_of, prepare_audio

WINDOW_S, STRIDE_S = 25, 20
BIWI = "BIWI_23370_vertices"
# (audio [1, N], number of frames) -> motion [1, T, D].
Predict = Callable[[np.ndarray, int], np.ndarray]


def window_bounds(num_samples: int) -> list[tuple[int, int]]:
    """Returns the first and last sample of every window.

    The last one is longer than the 5 s that it shares with the one before.
    """
    window, stride = WINDOW_S * SAMPLE_RATE, STRIDE_S * SAMPLE_RATE
    more = max(0, -(-(num_samples - window) // stride))
    return [(i * stride, min(i * stride + window, num_samples)) for i in range(more + 1)]


def cross_fade(pieces: Sequence[Float[np.ndarray, "_ D"]], fps: int) -> Float[np.ndarray, "T D"]:
    """Joins windows to one sequence.

    The frames that two of them share are blended linearly.
    """
    shared = (WINDOW_S - STRIDE_S) * fps
    fall = np.linspace(1, 0, shared)[:, None]
    merged = [np.asarray(pieces[0])]
    for piece in pieces[1:]:
        blended = fall * merged[-1][-shared:] + (1 - fall) * piece[:shared]
        merged[-1] = merged[-1][:-shared]
        merged += [np.concatenate([blended.astype(piece.dtype), piece[shared:]])]
    return np.concatenate(merged)


def talk(predict: Predict, audio: Float[np.ndarray, " N"], fps: int, *, normalize: bool) -> Float[np.ndarray, "T D"]:
    """Generates motion of 16 kHz audio at 25 or 30 fps, window by window.

    `normalize` is what the encoder takes, see `prepare_audio`: the whole, then every window again.
    """
    whole = prepare_audio(audio, normalize=normalize)
    pieces = []
    for first, last in window_bounds(len(whole)):
        window = prepare_audio(whole[first:last], normalize=normalize)
        pieces.append(np.asarray(predict(window[None], frames_of(len(window), float(fps))))[0])
    return cross_fade(pieces, fps)


def normalizes(model: UniTalker) -> bool:
    """Returns whether the model's encoder takes normalised audio, see `prepare_audio`."""
    return not isinstance(model.speech_encoder, WavLM)


def predict(
    model: UniTalker,
    audio: Float[np.ndarray, " N"],
    annotation: str,
    num_frames: int,
    template: Float[np.ndarray, " D"],
    identity: int | None = None,
    *,
    dtype: str = "float32",
) -> Float[np.ndarray, "T D"]:
    """Predicts an annotation's values for a whole clip of prepared audio.

    They are in the template's units. `identity=None` uses the pivot identity (the last row). It
    compiles once a length. Raises UserError for audio too short for a frame.
    """
    if num_frames < 1 or model.speech_encoder.num_frames(len(audio)) < 1:
        raise UserError(f"audio of {len(audio) / SAMPLE_RATE:.3f} s is too short for a frame; give at least 0.1 s")
    graphdef, params = split(model)
    who = np.array([-1 if identity is None else identity], np.int32)  # the pivot is the last row
    arrays = (np.asarray(audio, np.float32)[None], np.asarray(template, np.float32)[None], who)
    return np.asarray(_predict(graphdef, annotation, num_frames, Compute(jnp.dtype(dtype)), params, *arrays)[0])


def speak(
    model: UniTalker,
    audio: Float[np.ndarray, " N"],
    annotation: str,
    fps: int,
    template: Float[np.ndarray, " D"],
    identity: int | None = None,
    *,
    dtype: str = "float32",
) -> Float[np.ndarray, "T D"]:
    """Predicts an annotation's values of 16 kHz audio of any length as it was recorded.

    The rate is 25 or 30 fps. It compiles once a window's length. Arguments are those of `predict`.
    """

    def of_window(window: np.ndarray, num_frames: int) -> np.ndarray:
        return predict(model, window[0], annotation, num_frames, template, identity, dtype=dtype)[None]

    return talk(of_window, np.asarray(audio, np.float32), fps, normalize=normalizes(model))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _predict(
    graphdef: nnx.GraphDef, annotation: str, num_frames: int, compute: Compute, params: Params, *arrays: Array
) -> Array:
    return merge(graphdef, params)(*arrays, annotation, num_frames, None, compute).motion


def generate(model: UniTalker, inputs: Inputs, options: Options) -> Generated:
    """Predicts one annotation of one person or both, each from the own audio alone.

    Raises UserError for an annotation or an identity that the model lacks, and for a template of
    another length.
    """
    annotation = inputs.annotation or default_annotation(tuple(model.heads))
    if annotation not in model.heads:
        raise UserError(f"annotation must be one of {', '.join(model.heads)}, got {annotation!r}")
    dim, rows = model.num_values(annotation), len(model.decoder.identity_embed[...])
    if inputs.identity is not None and not 0 <= inputs.identity < rows:
        raise UserError(f"identity must be from 0 to {rows - 1}, got {inputs.identity}")
    template = np.zeros(dim, np.float32) if inputs.template is None else inputs.template
    if template.shape != (dim,):
        raise UserError(f"template must hold {dim} numbers, as {annotation} has, got {list(template.shape)}")
    fps = options.fps or default_fps(annotation)
    given = (inputs.audio, inputs.other_audio)
    length = max(len(track) for track in given if track is not None)
    tracks = [np.pad(track, (0, length - len(track))) for track in given[: options.people]]
    values = [speak(model, track, annotation, fps, template, inputs.identity, dtype=options.dtype) for track in tracks]
    return Generated(np.stack(values), annotation, float(fps))


def default_annotation(annotations: Sequence[str]) -> str:
    """Returns the annotation that is meant where none is named: our motion, or the only one.

    Raises UserError where there are several and none is our motion.
    """
    if MOTION_KIND in annotations:
        return MOTION_KIND
    if len(annotations) > 1:
        raise UserError(f"annotation must be one of {', '.join(annotations)}, got nothing")
    return annotations[0]


def default_fps(annotation: str) -> int:
    """Returns the published frame rate of an annotation: 25 of our motion and of BIWI, else 30."""
    return int(FPS) if annotation in (MOTION_KIND, BIWI) else 30
