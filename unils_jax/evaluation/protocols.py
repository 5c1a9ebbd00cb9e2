"""Named protocols of evaluation: the people and frames that are scored, and how the model decodes.

Source of `unils-release`: the release's evaluation; see `Protocol` for what `unils-clean` changes
and why.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from flax import nnx
from jaxtyping import Bool, Float

from data_pipelines.phones import PhoneTracks
from data_pipelines.record import Record
from data_pipelines.windows import is_long_enough, least_frames, whole_sequence
from unils_jax.audio import frame_loudness
from unils_jax.errors import UserError
from unils_jax.evaluation.figures.speech import cut_phones, lip_phones
from unils_jax.evaluation.figures.units import missing_groups, needed_groups
from unils_jax.evaluation.metrics import Mesh, Person, score_person
from unils_jax.face.flame import FlameAsset
from unils_jax.inference.finishing import finish
from unils_jax.inference.sampling import ByScale, Sampling
from unils_jax.motion import FPS, HEAD, MOTION_DIM, MOTION_KIND, WINDOW_FRAMES, Window, center_head
from unils_jax.nn.params import Params, merge
from unils_jax.outputs.video import render_video
from unils_jax.systems.base import Inputs, Options, System
from unils_jax.systems.registry import SYSTEMS

MAX_LENGTH_DIFFERENCE_FRAMES = 25
# Frames that a held-out style may be of; they are left out of the scores whatever the model's
# window, so that the scores of all models are of the same frames.
HELD_OUT_FRAMES = 100


@dataclass(frozen=True)
class Protocol:
    """The people and frames that are scored, and how the model decodes them.

    All protocols decode whole sequences, with previous motion zero and without smoothing. Every
    conversation is decoded with the same seed, so that `unils decode --seed --people` gives the
    motion that was scored.
    """

    name: str  # key of PROTOCOLS
    num_people: int  # people of each conversation that are scored, the first ones
    # A person's style clip is of the truth. True: of its first frames, which are then left out of
    # the scores. False: the middle of the very clip that is scored (the release's way, a
    # small leak).
    held_out_style: bool
    seed: int = 42  # the first one; further ones count up from it
    tau: ByScale = 1.0  # temperature; 0 is greedy
    cfg: ByScale = 1.5  # guidance; up to 1 is off
    top_p: float = 0.97  # nucleus per bit
    # True: head rotation of prediction and truth is centred per sequence, and what that takes away
    # is reported as `head_offset`. False: it is left as it is.
    centred: bool = True
    window: Window = Window()  # of the model that is scored, see `for_window`

    @property
    def first_frame(self) -> int:
        """The first frame that is scored."""
        return max(HELD_OUT_FRAMES, self.window.context_frames) if self.held_out_style else 0

    def for_window(self, window: Window) -> "Protocol":
        """Returns the protocol for a model of this window: its style clips and its borders."""
        return replace(self, window=window)

    def settings(self, system: System | None) -> dict[str, object]:
        """Returns everything the protocol fixes, for the report.

        A system that draws nothing gives its own conditions. Those of motion that no system of ours
        generates (None) are not known: only what is scored is returned.
        """
        frames, last = self.window.context_frames, self.first_frame
        style = (
            f"frames {last - frames}-{last - 1} of the record" if self.held_out_style else "middle of the scored clip"
        )
        scored = {
            "name": self.name,
            "people_scored": self.num_people,
            "first_scored_frame": self.first_frame,
            "head_rotation": "prediction and truth centred per sequence" if self.centred else "as it is",
            "smoothing": "none",
        }
        if system is None:
            return scored
        if not system.draws:
            return scored | dict(system.conditions)
        return scored | {
            "style": f"{frames} frames of the truth, {style}",
            "previous_motion": "zero",
            "first_seed": self.seed,
            "tau": self.tau,
            "cfg": self.cfg,
            "top_p": self.top_p,
        }


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("unils-release", num_people=1, held_out_style=False),
        Protocol("unils-clean", num_people=2, held_out_style=True),
        *(Protocol(system.name, **system.protocol) for system in SYSTEMS.values() if system.protocol),
    )
}


@dataclass(frozen=True)
class Conversation:
    """A dialogue to score, in float32."""

    name: str
    motion: Float[np.ndarray, "2 T 108"]  # the truth, head rotation as the protocol has it
    style: Float[np.ndarray, "2 F 108"]  # centred
    audio: Float[np.ndarray, "2 N"] | None  # 16 kHz, N = T * 640; None: the record has none
    speaking: Bool[np.ndarray, "2 T"]
    observed: Bool[np.ndarray, "2 108"]  # the channels of each person that the truth has
    tracked: Float[np.ndarray, "2 T 108"]  # `motion` with head rotation as it was tracked
    phones: tuple[PhoneTracks, ...] = ()  # of each person, when lips say them; () where not known


@dataclass(frozen=True)
class Prediction:
    """Motion of a conversation's people as anybody's files give it."""

    motion: Float[np.ndarray, "P T 108"]  # zero in channels that the files lack
    observed: Bool[np.ndarray, "P 108"] | None = None  # channels that they have; None: all
    vertices: Float[np.ndarray, "P T V 3"] | None = None  # metres, unturned; None: those of `motion`


# A conversation and a seed -> motion [P, T, 108], the people in the order of the conversation.
Predict = Callable[[Conversation, int], Float[np.ndarray, "P T 108"]]


def skip_reason(
    record: dict[str, object], protocol: Protocol, *, needs_audio: bool, needs_partner: bool = False
) -> str | None:
    """Returns why the protocol cannot score a record; None where it can.

    `record` is as the store's manifest describes it. With `needs_partner` the motion of both people
    must be there.
    """
    frames = int(record["frames"]) - protocol.first_frame
    if record["people"] != 2:
        return f"it holds {record['people']} person, a dialogue has 2"
    if not record["speech_mask"]:
        return "it has no speech mask, so that its roles are unknown"
    people = 2 if needs_partner else protocol.num_people
    seen = None if record["observed"] is None else record["observed"][:people].any(axis=1)
    if seen is not None and not seen.all():
        return f"it has no motion of person {int(np.argmin(seen)) + 1}, who is {'seen' if needs_partner else 'scored'}"
    if needs_audio and not record["audio"]:
        return "it has no audio to decode from"
    if not is_long_enough(frames):
        return f"{frames} frames are left to score, more than {WINDOW_FRAMES + 1} are needed"
    if int(record["frames"]) < least_frames(protocol.window):
        return f"it has {record['frames']} frames, a style clip needs {least_frames(protocol.window)}"
    return None


def conversation_of(record: Record, protocol: Protocol) -> Conversation:
    """Builds the conversation of a record, with the protocol's style clip.

    `skip_reason` must be None for the record.
    """
    frames = protocol.window.context_frames
    item = whole_sequence(record, frames)
    motion, tracked = item["motion"].astype(np.float32), record.motion.astype(np.float32)
    held_out = motion[:, : protocol.first_frame][:, -frames:]
    style = held_out if protocol.held_out_style else item["style"].astype(np.float32)
    motion = motion if protocol.centred else tracked
    observed = np.ones(motion.shape[::2], bool) if record.observed is None else record.observed
    phones = tuple(lip_phones(speech, motion.shape[1]) for speech in record.speech)
    return Conversation(record.name, motion, style, item.get("audio"), item["speech_mask"], observed, tracked, phones)


def generate_with(system: System, model: nnx.Module, protocol: Protocol, dtype: str = "float32") -> Predict:
    """Returns a function that generates motion of the people that the protocol scores.

    It takes one conversation at a time. The system gets those inputs of a conversation that it
    reads: both tracks, the style clips, and the true motion of the partner as it was tracked. A
    system of several annotations predicts ours.
    """
    people = protocol.num_people
    sampling = Sampling(protocol.tau, protocol.cfg, protocol.top_p)

    def predict(conversation: Conversation, seed: int) -> np.ndarray:
        own, other = (None, None) if conversation.audio is None else conversation.audio
        held = {
            "other_audio": other,
            "other_motion": conversation.tracked,
            "style": conversation.style[:people],
            "annotation": MOTION_KIND,
        }
        read = {name: value for name, value in held.items() if name in system.inputs}
        inputs = Inputs(audio=own, num_frames=conversation.motion.shape[1], **read)
        return system.generate(model, inputs, Options(sampling, seed, people, dtype)).values

    return predict


def people_to_score(
    conversation: Conversation,
    prediction: Float[np.ndarray, "P T2 108"] | Prediction,
    protocol: Protocol,
    window_frames: int | None = None,
) -> list[Person]:
    """Returns the protocol's people and frames, prediction and truth cut to the shorter.

    Channels that the truth or the prediction lacks are zero in both. `window_frames` are of the
    model that made the prediction; None: the protocol's. Raises UserError where the prediction
    holds too few people, differs from the truth by more than a second, or holds NaN or infinite
    values.
    """
    given = prediction if isinstance(prediction, Prediction) else Prediction(prediction)
    prediction, frames, problems = given.motion, conversation.motion.shape[1], []
    if len(prediction) < protocol.num_people:
        problems.append(f"holds {len(prediction)} person, protocol {protocol.name} scores {protocol.num_people}")
    if abs(prediction.shape[1] - frames) > MAX_LENGTH_DIFFERENCE_FRAMES:
        problems.append(
            f"has {prediction.shape[1]} frames at {FPS:g} fps, the truth {frames}: more than one second apart"
        )
    if not np.isfinite(prediction).all():
        problems.append("holds NaN or infinite values")
    if problems:
        raise UserError(f"motion of {conversation.name} {'; '.join(problems)}; mend it or leave the record out")
    scored = slice(protocol.first_frame, min(prediction.shape[1], frames))
    scores = prediction.astype(np.float32)
    scores = center_head(scores) if protocol.centred else scores
    people = []
    for person in range(protocol.num_people):
        loudness_db = None
        if conversation.audio is not None:
            loudness_db = frame_loudness(conversation.audio[person])[scored]
        observed = conversation.observed[person]
        both = observed if given.observed is None else observed & given.observed[person]
        vertices = None
        if given.vertices is not None and not missing_groups(observed) & needed_groups("LVE"):
            vertices, both = given.vertices[person, scored], np.zeros(MOTION_DIM, bool)
        people.append(
            Person(
                prediction=np.where(both, scores[person, scored], np.float32(0)),
                # Against vertices, all channels of the truth pose the head.
                truth=np.where(both if vertices is None else observed, conversation.motion[person, scored], 0),
                partner=conversation.motion[1 - person, scored],
                speaking=conversation.speaking[person, scored],
                loudness_db=loudness_db,
                head_offset=float(np.abs(prediction[person, :, HEAD].mean(axis=0, dtype=np.float64)).mean()),
                channel_mask=both,
                vertices=vertices,
                partner_channel_mask=conversation.observed[1 - person],
                window_frames=window_frames or protocol.window.frames,
                first_frame=protocol.first_frame,
                phones=cut_phones(conversation.phones[person], scored) if conversation.phones else None,
            )
        )
    return people


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
    protocol: Protocol = VALIDATION,
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
        protocol: `VALIDATION` for the model's window, as the conversations were made with.
    """

    def free_running_eval(step: int, params: Params) -> dict[str, float]:
        model = merge(graphdef, params)
        predict = generate_with(system, model, protocol)
        rows: list[dict[str, float]] = []
        for i, conversation in enumerate(conversations):
            motion = predict(conversation, protocol.seed)
            for person in people_to_score(conversation, motion, protocol):
                figures = score_person(person, mesh, expression_basis)[0]
                rows.append({name: value for name, value in figures.items() if name.startswith("unils/")})
            if clips is not None and i == 0:
                folder, head = clips
                path = folder / f"step_{step}.mp4"
                shown = finish(motion, expression_basis, window_frames=protocol.window.frames).motion
                render_video(path, shown, head, conversation.audio, expression_basis=expression_basis)
        # A prior's motion answers no audio: only how much it moves compares with the truth.
        if model.encoder is None:
            rows = [{n: v for n, v in row.items() if n.endswith(_DYNAMICS)} for row in rows]
        columns = {name: [row[name] for row in rows if np.isfinite(row[name])] for name in rows[0]}
        return {name: float(np.mean(values)) for name, values in columns.items() if values}

    return free_running_eval
