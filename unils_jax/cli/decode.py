"""`unils decode`: audio files in, motion files and a video out."""

import argparse
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from data_pipelines.cluster import Actors, on_ray
from data_pipelines.speech_loader import read_pca
from unils_jax import __version__
from unils_jax.checkpoints.checkpoint import Checkpoint
from unils_jax.checkpoints.loading import load
from unils_jax.cli.arguments import read_clip, readers_of
from unils_jax.cli.decode_flags import BATCH, DEMO_MODEL, FLAG_INPUTS, DecodeRequest, add_request_arguments
from unils_jax.errors import UserError, counted, shown
from unils_jax.face.head import load_head
from unils_jax.files import check_output, clear_partials
from unils_jax.inference import conversations
from unils_jax.inference.finishing import finish, log_limits
from unils_jax.inference.program import Program, make_program
from unils_jax.inference.recordings import (
    Recording,
    find_recordings,
    is_decoded,
    read_conversation,
    read_recordings,
)
from unils_jax.inference.sampling import Sampling
from unils_jax.models.unils import UniLS
from unils_jax.motion import MOTION_KIND, Window, load_motion, save_motion
from unils_jax.outputs.annotations import read_template, save_annotation
from unils_jax.outputs.video import render_video
from unils_jax.runtime import only_writer
from unils_jax.systems import decoding
from unils_jax.systems.base import Generated, Inputs, Options, System, window_of
from unils_jax.systems.registry import models_with_audio

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils decode`, with working examples."""
    add_request_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Decodes audio files.

    Raises UserError for every mistake of the user, before anything is written; where some of
    several files are at fault, after the others are done.
    """
    decode(DecodeRequest.from_args(args))


def decode(request: DecodeRequest) -> None:
    """Decodes one conversation, or all of a folder or list, and prints a line."""
    if request.several:
        recordings, out = find_recordings(Path(request.audio)), Path(request.out)
        check_output(out / f"{recordings[0].name}.npz", ".npz")
        with only_writer(out / ".decode.lock", out):
            clear_partials(out)
            try:
                decode_recordings(request, recordings)
            finally:
                clear_partials(out)  # of nodes that were lost
    else:
        decode_one(request)


def decode_one(request: DecodeRequest) -> None:
    """Decodes one conversation to a motion file, a video, or both."""
    for path, suffix in ((request.out, ".npz"), (request.video, ".mp4")):
        if path:
            check_output(path, suffix)
    request.sampling(Sampling())  # values that are out of range fail before the checkpoint is read
    options = Options(Sampling(), request.seed, request.people or 1, request.dtype, request.fps)
    audio = read_conversation(request.tracks, request.channels, (request.track, request.track2))
    if options.people > len(audio):
        raise UserError("--people 2 needs both tracks; give the second one with --audio2")
    checkpoint = load_checkpoint(request)
    options = replace(options, sampling=request.sampling(checkpoint.sampling))
    system = checkpoint.system
    refuse_useless(request, system)
    sees_partner, annotated = "other_motion" in system.inputs, "annotation" in system.inputs
    # The partner's motion is known, so that one person is decoded unless both are asked for.
    if request.people is None and not sees_partner:
        options = replace(options, people=len(audio))
    inputs = Inputs(*audio, **read_clips(request, options.people, checkpoint))
    source = source_of(request, checkpoint, system)
    if annotated:
        checkpoint = with_annotation(request, checkpoint)
        inputs = replace(inputs, **annotation_inputs(request, checkpoint))
        source |= {"annotation": inputs.annotation, "subject": request.subject, "template": request.template}
    # A head that cannot be read must fail before the minutes of decoding.
    head = load_head(request.flame) if request.video else None
    started = time.perf_counter()
    if sees_partner:
        motion, origin = partner_motion(request, audio, options.people, checkpoint.expression_basis)
        inputs, source = replace(inputs, other_motion=motion), source | {"partner_motion": origin}
    generated = generate(request, system, checkpoint, inputs, options)
    seconds = time.perf_counter() - started
    values, basis = generated.values, checkpoint.expression_basis
    is_motion = generated.annotation == MOTION_KIND
    if is_motion and not request.raw:
        values = finished_values(values, checkpoint, request.written)
    if request.out and is_motion:
        save_motion(request.out, values, expression_basis=basis, source=source, finished=not request.raw)
    elif request.out:
        save_annotation(request.out, values, generated.annotation, generated.fps, source)
    if request.video:
        # A listener's video has both voices; people who are generated apart have only theirs.
        voices = audio[: options.people] if sees_partner or annotated else audio
        render_video(request.video, values, head, voices, expression_basis=basis)
    what = f"frames of {generated.annotation}, in" if annotated else "frames, decoded in"
    print(f"{shown(request.written)}: {options.people} x {values.shape[1]} {what} {seconds:.1f} s with compilation")


def finished_values(
    motion: Float[np.ndarray, "P T 108"], checkpoint: Checkpoint, name: str
) -> Float[np.ndarray, "P T 108"]:
    """Finishes motion that a checkpoint decoded and logs what was limited in it."""
    window = window_of(checkpoint.config)
    finished = finish(motion, checkpoint.expression_basis, window_frames=window.frames)
    log_limits(finished, name)
    return finished.motion


def load_checkpoint(request: DecodeRequest) -> Checkpoint:
    """Loads the model that the flags name, or the package's demo model with a warning."""
    checkpoint = load(
        request.checkpoint,
        audio_encoder=request.audio_encoder,
        stage=models_with_audio(),
        adapter=request.adapter,
    )
    if request.checkpoint:
        return checkpoint
    log.warning(DEMO_MODEL)
    return replace(checkpoint, source={**checkpoint.source, "checkpoint": "the demo model of unils_jax"})


def refuse_useless(request: DecodeRequest, system: System) -> None:
    """Raises UserError, naming them, for flags that the system has no use for."""
    useless = [name for name, read in FLAG_INPUTS.items() if read not in system.inputs]
    given = [name for name in useless if getattr(request, name) is not None]
    if given:
        flags, others = ", ".join(f"--{name}" for name in given), readers_of(FLAG_INPUTS[given[0]])
        path = request.checkpoint or "the demo model"
        raise UserError(f"{flags} is of {others}, {path} is {system.title}; leave it away")


def generate(
    request: DecodeRequest, system: System, checkpoint: Checkpoint, inputs: Inputs, options: Options
) -> Generated:
    """Generates one conversation; with --batch in a program of so many, to the same bits."""
    if request.batch is None:
        return decoding.generate(system, checkpoint.model, inputs, options)
    program = program_of(request, checkpoint, options.people, request.batch)
    settings = {"style": inputs.style, "prev": inputs.prev, "sampling": options.sampling, "seed": options.seed}
    conversation = conversations.Request(inputs.audio, inputs.other_audio, **settings)
    ((_, motion),) = conversations.decode_many(program, [conversation])
    return Generated(motion)


def decode_recordings(request: DecodeRequest, recordings: list[Recording]) -> None:
    """Decodes several conversations to a motion file each, leaving alone what is there already.

    Raises UserError at the end, naming those whose files cannot be read.
    """
    request.sampling(Sampling())
    if request.engine == "ray":
        jax.config.update("jax_platforms", "cpu")  # the accelerators of this machine are the actors'
    checkpoint = load_checkpoint(request)
    system = checkpoint.system
    # Only UniLS' networks have a program with slots for several conversations.
    if system.build is not UniLS:
        raise UserError(f"{system.title} decodes one conversation at a time; give one file, or two")
    refuse_useless(request, system)
    if request.people == 2 and any(len(recording.tracks) == 1 for recording in recordings):
        raise UserError("--people 2 needs both tracks of every conversation; leave it away, or pair the files")
    sources = {r.name: recording_source(request, checkpoint, r) for r in recordings}
    missing = [r for r in recordings if not already_decoded(request, r, sources[r.name])]
    there = len(recordings) - len(missing)
    groups = {people: [r for r in missing if (request.people or len(r.tracks)) == people] for people in (1, 2)}
    # Programs are compiled for a number of people: first all single ones, then all pairs.
    batches = [
        Batch(people, group, read_clips(request, people, checkpoint), {r.name: sources[r.name] for r in group})
        for people, group in groups.items()
        if group
    ]
    started, frames, failures = time.perf_counter(), 0, []
    progress = tqdm(total=len(recordings), initial=there, desc="decode", disable=None, unit="conversation")
    for decoded in decode_batches(request, checkpoint, batches):
        frames += decoded.frames
        failures += [decoded.failure] if decoded.failure else []
        progress.update(not decoded.failure)
    progress.close()
    seconds, done = time.perf_counter() - started, len(missing) - len(failures)
    kept = f", {there} already there" if there else ""
    print(
        f"{shown(request.out)}: {counted(done, 'conversation')}, {frames} frames, "
        f"decoded in {seconds:.1f} s with compilation{kept}"
    )
    if failures:
        raise UserError(f"{len(failures)} of {len(recordings)} conversations failed: {'; '.join(failures)}")


@dataclass(frozen=True)
class Batch:
    """Recordings of the same number of people that one program decodes."""

    people: int
    recordings: list[Recording]
    clips: dict[str, Float[np.ndarray, "P F 108"] | None]  # style and prev
    sources: dict[str, dict[str, Any]]  # by a recording's name: what its motion file says of its origin

    def cut(self, slots: int) -> "Iterator[Batch]":
        """Yields batches of up to four times the slots, where that makes enough of them."""
        number = max(slots, min(4 * slots, len(self.recordings) // 16))
        for first in range(0, len(self.recordings), number):
            yield replace(self, recordings=self.recordings[first : first + number])


@dataclass(frozen=True)
class Decoded:
    """What became of one recording."""

    frames: int = 0  # of all its people
    failure: str = ""  # its name and why it cannot be read; "": its motion is written


class RecordingsDecoder:
    """Writes the motion files of recordings, with one compiled program a number of people."""

    def __init__(self, request: DecodeRequest, checkpoint: Checkpoint | None = None):
        self.request, self.checkpoint = request, checkpoint or load_checkpoint(request)
        self.programs: dict[int, Program] = {}

    def __call__(self, batch: Batch) -> Iterator[Decoded]:
        """Yields what became of each recording as it ends, those that cannot be read last."""
        request, checkpoint, failures = self.request, self.checkpoint, []
        sampling = request.sampling(checkpoint.sampling)
        if batch.people not in self.programs:
            self.programs[batch.people] = program_of(request, checkpoint, batch.people, request.batch or BATCH)
        waiting = (
            conversations.Request(*audio, **batch.clips, sampling=sampling, seed=request.seed, name=recording.name)
            for recording, audio in read_recordings(batch.recordings, failures)
        )
        for conversation, motion in conversations.decode_many(self.programs[batch.people], waiting):
            path = Path(request.out) / f"{conversation.name}.npz"
            if not request.raw:
                motion = finished_values(motion, checkpoint, str(path))
            origin = {"expression_basis": checkpoint.expression_basis, "source": batch.sources[conversation.name]}
            save_motion(path, motion, **origin, finished=not request.raw)
            log.info("%s: %d x %d frames", path, *motion.shape[:2])
            yield Decoded(motion.shape[0] * motion.shape[1])
        yield from (Decoded(failure=failure) for failure in failures)


def decode_batches(request: DecodeRequest, checkpoint: Checkpoint, batches: list[Batch]) -> Iterator[Decoded]:
    """Yields what became of each recording, decoded here or by actors of a Ray cluster."""
    if request.engine == "local":
        decoder = RecordingsDecoder(request, checkpoint)
        for batch in batches:
            yield from decoder(batch)
        return
    pieces = [piece for batch in batches for piece in batch.cut(request.batch or BATCH)]
    actors = Actors(request.actors, True, (request.audio, request.out, request.checkpoint))
    for _, decoded in on_ray(partial(RecordingsDecoder, request), pieces, actors):
        yield from decoded


def recording_source(request: DecodeRequest, checkpoint: Checkpoint, recording: Recording) -> dict[str, Any]:
    """Returns the origin that the motion file of one of several conversations keeps."""
    source = source_of(request, checkpoint, checkpoint.system)
    source |= {"audio": [str(path) for path in recording.tracks], "batch": request.batch or BATCH}
    clips = {name: getattr(request, name) for name in ("style", "prev")}
    return source | {name: path for name, path in clips.items() if path}


def already_decoded(request: DecodeRequest, recording: Recording, source: dict[str, Any]) -> bool:
    """Returns whether a run before this one wrote the recording's motion from these inputs."""
    model = [request.checkpoint] if request.checkpoint and Path(request.checkpoint).is_file() else []
    inputs = [*recording.tracks, *filter(None, (request.style, request.prev)), *model]
    people = request.people or len(recording.tracks)
    return is_decoded(Path(request.out) / f"{recording.name}.npz", people, source, inputs, finished=not request.raw)


def program_of(request: DecodeRequest, checkpoint: Checkpoint, people: int, slots: int) -> Program:
    """Builds the decode program for conversations of so many people."""
    guided = request.sampling(checkpoint.sampling).guided
    return make_program(checkpoint.model, slots=slots, people=people, guided=guided, dtype=request.dtype)


def source_of(request: DecodeRequest, checkpoint: Checkpoint, system: System) -> dict[str, Any]:
    """Returns the origin that a motion file keeps: checkpoint, audio and settings."""
    source = {**checkpoint.source, "audio": request.tracks, "dtype": request.dtype, "version": __version__}
    if system.draws:
        source |= {"seed": request.seed, **vars(request.sampling(checkpoint.sampling))}
        source["batch"] = request.batch or 1
    if (window := window_of(checkpoint.config)) != Window():
        source["window_frames"] = window.frames  # where the borders are that `finish_file` mends
    return source


def read_clips(
    request: DecodeRequest, people: int, checkpoint: Checkpoint
) -> dict[str, Float[np.ndarray, "P F 108"] | None]:
    """Reads the clips of --style and --prev for conversations of so many people."""
    basis, frames = checkpoint.expression_basis, window_of(checkpoint.config).context_frames
    return {name: read_clip(getattr(request, name), name, people, basis, frames) for name in ("style", "prev")}


def partner_motion(
    request: DecodeRequest, audio: list[Float[np.ndarray, " _"]], people: int, basis: str
) -> tuple[Float[np.ndarray, "P T 108"] | None, str]:
    """Reads or predicts the motion that a partner sees, and says in words where it comes from.

    Without a flag it is None, a partner who does not move: no recording of the partner is no reason
    to fail. Raises UserError where it is of another expression basis, or of too few people.
    """
    if request.motion2_by:
        return predicted_motion(request, audio, basis), f"predicted by {request.motion2_by}"
    if request.motion2 is None:
        log.warning("no --motion2 or --motion2_by: the partner does not move here, unlike all partners in training")
        return None, "zero"
    file = load_motion(request.motion2)
    if file.expression_basis != basis:
        raise UserError(
            f"--motion2 {request.motion2} is of the {file.expression_basis!r} basis, the checkpoint of {basis!r}; use "
            "motion of the basis that the checkpoint was trained on"
        )
    if len(file.motion) < people:
        raise UserError(f"--motion2 {request.motion2} holds one person; both see each other, give motion of both")
    return file.motion, request.motion2


def predicted_motion(
    request: DecodeRequest, audio: list[Float[np.ndarray, " _"]], basis: str
) -> Float[np.ndarray, "2 T 108"]:
    """Predicts the motion of both people by a UniLS dialogue, head rotation around zero."""
    checkpoint = load(request.motion2_by, audio_encoder=request.audio_encoder, stage="dialogue")
    if checkpoint.expression_basis != basis:
        raise UserError(
            f"--motion2_by {request.motion2_by} is of the {checkpoint.expression_basis!r} basis, the checkpoint of "
            f"{basis!r}; use one that was trained on the same data"
        )
    own, other = audio if len(audio) == 2 else (audio[0], np.zeros_like(audio[0]))
    settings = {"sampling": checkpoint.sampling, "seed": request.seed, "dtype": request.dtype}
    return conversations.decode(checkpoint.model, own, other, people=2, **settings)


def with_annotation(request: DecodeRequest, checkpoint: Checkpoint) -> Checkpoint:
    """Keeps the head of the chosen annotation alone, and adds its set's PCA where that is missing.

    Raises one UserError with every flag that does not fit the annotation.
    """
    config, system, problems = checkpoint.config, checkpoint.system, []
    annotation = request.annotation or (MOTION_KIND if MOTION_KIND in config.annotations else config.annotations[0])
    unclear = not request.annotation and annotation != MOTION_KIND and len(config.annotations) > 1
    if annotation not in config.annotations or unclear:
        got = "nothing" if request.annotation is None else repr(request.annotation)
        problems.append(f"--annotation must be one of {', '.join(config.annotations)}, got {got}")
    if request.subject is not None and not 0 <= request.subject < config.num_identities:
        problems.append(f"--subject must be from 0 to {config.num_identities - 1}, got {request.subject}")
    if annotation == MOTION_KIND and (request.template or request.pca or request.fps == 30):
        problems.append(f"{annotation} has 25 fps, no template and no PCA; leave --template, --pca and --fps away")
    elif annotation != MOTION_KIND and request.video:
        problems.append(f"--video shows {MOTION_KIND} alone, not {annotation}; write its numbers with --out")
    if problems:
        raise UserError("; ".join(problems))
    checkpoint = checkpoint.select(annotation)
    lacking = system.without_pca(checkpoint.config, checkpoint.params)
    if lacking and not request.pca:
        raise UserError(
            f"{request.checkpoint} leaves out the PCA of {annotation}; give its set, which has pca.npz, with --pca DIR"
        )
    if request.pca and not lacking:
        raise UserError(f"{request.checkpoint} needs no PCA for {annotation} or has its own; leave --pca away")
    bases = {name: read_pca(Path(request.pca)) for name in lacking}
    config, params = system.with_pca(checkpoint.config, checkpoint.params, bases)
    return replace(checkpoint, config=config, params=params)


def annotation_inputs(request: DecodeRequest, checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the inputs that only models of annotations read."""
    (annotation,), (dim,) = checkpoint.config.annotations, checkpoint.config.dims
    template = read_template(request.template, annotation, dim)
    return {"annotation": annotation, "identity": request.subject, "template": template}
