"""`unils evaluate`: every metric of a checkpoint or of motion files, against a store's truth."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import jax

from data_pipelines.cluster import Actors, check_engine
from unils_jax.checkpoints.loading import load
from unils_jax.cli.arguments import (
    TrackRequest,
    add_encoder_argument,
    add_engine_arguments,
    add_track_arguments,
    readers_of,
)
from unils_jax.errors import UserError, counted, shown
from unils_jax.evaluation import lip_errors
from unils_jax.evaluation.figures.recordings import score_recordings, table
from unils_jax.evaluation.metrics import jsonable
from unils_jax.evaluation.protocols import PROTOCOLS
from unils_jax.evaluation.report import report_paths
from unils_jax.evaluation.run import (
    EvaluationSettings,
    evaluate_checkpoint,
    evaluate_files,
    headline,
    host,
    versions,
)
from unils_jax.files import check_output, write_text
from unils_jax.inference.sampling import DTYPES
from unils_jax.systems.registry import SYSTEMS, models_with_audio

NOTHING = "name what is scored: --checkpoint PATH, --motion DIR, or --recordings DIR"


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest(TrackRequest):
    """The flags of `unils evaluate`."""

    checkpoint: str | None = None
    motion: str | None = None  # folder of motion files instead of a checkpoint
    data: str | None = None  # None: the sets of a checkpoint that predicts annotations
    split: str = "test"
    protocol: str = "unils-release"
    seeds: int = 1
    limit: int | None = None
    audio_encoder: str | None = None
    dtype: str = "float32"
    flame: str | None = None
    out: str = "report.json"
    finished: bool = False  # True: motion as it is drawn and exported; False: as it was decoded
    own_sampling: bool = False  # True: bits are drawn as the checkpoint says; False: as the protocol does
    recordings: str | None = None  # folder of recordings instead of a store; None: a store
    sets: list[str] | None = None
    resources: str | None = None
    engine: str = "local"  # of a store: this process, or actors of a Ray cluster
    actors: int | None = None  # of Ray; None: one an accelerator, without any one a node

    def __post_init__(self):
        check_engine(self.engine, self.actors)
        problems = [] if self.checkpoint or self.motion or self.recordings else [NOTHING]
        if self.recordings and (self.motion or self.data or self.sets or self.resources):
            problems.append("--recordings goes with --checkpoint alone; leave --motion, --data, --sets and --resources")
        if self.engine == "ray" and not (self.checkpoint and self.data):
            problems.append("--engine ray scores a --checkpoint on the conversations of a store, --data DIR; give both")
        if self.recordings and self.limit is not None:
            problems.append("--limit goes with --data DIR; all --recordings are scored")
        if self.recordings and not Path(self.recordings).is_dir():
            problems.append(f"--recordings {self.recordings} is no folder; give the one with the audio files")
        if self.motion and self.finished:
            problems.append("--finished is of --checkpoint; --motion holds what its files hold, leave --finished away")
        if self.own_sampling and (self.motion or self.recordings):
            problems.append("--own_sampling goes with --checkpoint and --data; leave it away")
        if self.protocol not in PROTOCOLS:
            problems.append(f"--protocol must be one of {', '.join(PROTOCOLS)}, got {self.protocol!r}")
        if self.seeds < 1:
            problems.append(f"--seeds must be at least 1, got {self.seeds}")
        if self.limit is not None and self.limit < 1:
            problems.append(f"--limit must be at least 1, got {self.limit}")
        if self.motion and self.seeds > 1:
            problems.append(f"--motion holds one motion a record, got --seeds {self.seeds}; leave --seeds away")
        if self.motion and self.audio_encoder:
            problems.append("--audio_encoder belongs to --checkpoint; leave it away with --motion")
        if self.motion and not Path(self.motion).is_dir():
            problems.append(f"--motion {self.motion} is no folder; give the one with the motion files")
        if self.seeds > 1 and not self.data and not self.recordings:
            problems.append(f"--seeds {self.seeds} goes with --data DIR; on its own sets a system draws nothing")
        if self.track_flags and not self.motion:
            problems.append(f"{', '.join(self.track_flags)} is of --motion DIR; leave it out")
        if self.motion and not self.data:
            problems.append("--motion is scored on a store; name it with --data DIR")
        if self.data and (self.sets or self.resources):
            problems.append("--data names a store, --sets and --resources are of a system's own sets; give one of both")
        # All of them at once: a user mends one command line, not one flag after the other.
        if problems:
            raise UserError("; ".join(problems))
        check_output(self.out, ".json")

    @property
    def settings(self) -> EvaluationSettings:
        """How a store is scored."""
        settings = (self.protocol, self.split, self.seeds, self.limit, self.dtype, self.audio_encoder, self.flame)
        sampling = {"finished": self.finished, "own_sampling": self.own_sampling}
        return EvaluationSettings(*settings, **sampling, files=self.track_options())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils evaluate`, with working examples."""
    parser.description = (
        "Scores motion against the truth of a store, per role, under a named protocol: the motion that a checkpoint "
        "gives, or with --motion a folder of files by any system: NAME.npz of ours, or FLAME parameters or vertices of "
        "other layouts in NAME_speaker1 and NAME_speaker2. Writes JSON, and beside it a Markdown table with the "
        "published rows and an HTML page with plots. Without --data a model of annotations "
        f"({readers_of('annotation')}) is scored on its own sets: lip errors per annotation, as JSON."
    )
    parser.epilog = """example:
  unils evaluate --checkpoint runs/demo/dialogue --data runs/demo/data --out runs/demo/report.json
  unils evaluate --motion theirs --data data/tracked --flame generic_model.pkl --protocol unils-clean
  unils evaluate --recordings recordings/ --seeds 2
  unils evaluate --checkpoint runs/annotations --resources resources/binary_resources --out lips.json"""
    names = ", ".join(system.title for system in SYSTEMS.values())
    system = parser.add_mutually_exclusive_group()
    system.add_argument("--checkpoint", metavar="PATH", help=f"{names}: workdir or file")
    system.add_argument("--motion", metavar="DIR", help="motion files named as the store's records")
    defaults = EvaluateRequest
    parser.add_argument(
        "--recordings",
        metavar="DIR",
        help="audio instead of a store: NAME_speaker1 and _speaker2 are a pair, an .npz next to a track is tracked "
        "motion; scores how the face follows the voice (default checkpoint: our demo model)",
    )
    parser.add_argument(
        "--finished", action="store_true", help="score motion as it is drawn and exported, not as it was decoded"
    )
    parser.add_argument(
        "--own_sampling", action="store_true", help="draw bits as the checkpoint says, not as the protocol does"
    )
    parser.add_argument("--data", metavar="DIR", help="store with the truth")
    parser.add_argument("--split", default=defaults.split, help="train, val or test (default: %(default)s)")
    parser.add_argument(
        "--protocol",
        default=defaults.protocol,
        help=f"{', '.join(PROTOCOLS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds", type=int, default=defaults.seeds, metavar="N", help="decodes a conversation (default: %(default)s)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="score the first N conversations only")
    add_track_arguments(parser, "with --motion, as the next three; vertices take --fps alone")
    add_encoder_argument(parser)
    parser.add_argument("--dtype", default=defaults.dtype, choices=DTYPES, help="of the decode (default: %(default)s)")
    parser.add_argument("--flame", metavar="FILE", help="generic_model.pkl of FLAME 2020, for the vertex metrics")
    parser.add_argument("--out", default=defaults.out, metavar="R.json", help="report to write (default: %(default)s)")
    add_engine_arguments(
        parser, "a checkpoint's conversations are decoded and scored", "one an accelerator, else one a node"
    )
    sets = parser.add_argument_group(readers_of("annotation"), "its own sets instead of a store, without --data")
    sets.add_argument(
        "--sets", nargs="+", metavar="DIR=SCALE", help="in the order of training (default: those it was trained on)"
    )
    sets.add_argument(
        "--resources", metavar="DIR", help="the release's binary_resources (default: those it was trained with)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Evaluates motion.

    Raises UserError for every mistake of the user, before anything is written.
    """
    evaluate(EvaluateRequest.from_args(args))


def evaluate(request: EvaluateRequest) -> None:
    """Writes the report of a request and prints its headline."""
    if request.recordings:
        evaluate_recordings(request)
        return
    if not request.data:
        evaluate_sets(request)
        return
    if request.checkpoint:
        actors = None
        if request.engine == "ray":
            jax.config.update("jax_platforms", "cpu")  # the accelerators of this machine are the actors'
            actors = Actors(request.actors, True, (request.data, request.checkpoint, request.flame))
        report = evaluate_checkpoint(request.checkpoint, request.data, request.settings, out=request.out, actors=actors)
    else:
        report = evaluate_files(request.motion, request.data, request.settings, out=request.out)
    paths = ", ".join(str(path) for path in report_paths(request.out).values())
    print(f"{shown(paths)}: {counted(report['data']['conversations'], 'conversation')}, {headline(report)}")


def evaluate_recordings(request: EvaluateRequest) -> None:
    """Writes the scores of a folder of recordings and prints them as a table."""
    checkpoint = load(request.checkpoint, audio_encoder=request.audio_encoder, stage=models_with_audio())
    scores = score_recordings(
        Path(request.recordings), checkpoint, seeds=request.seeds, dtype=request.dtype, finished=request.finished
    )
    scores |= {"versions": versions(), "host": host()}
    write_text(request.out, json.dumps(jsonable(scores), indent=1, allow_nan=False) + "\n")
    print(
        f"{table(scores)}\n{shown(request.out)}: {len(scores['tracks'])} tracks, motion {scores['settings']['motion']}"
    )


def evaluate_sets(request: EvaluateRequest) -> None:
    """Writes the lip errors of annotations on sets in their own layout and prints their means."""
    settings = lip_errors.SetSettings(
        request.sets, request.split, request.resources, request.flame, request.limit, request.dtype
    )
    report = lip_errors.evaluate_sets(request.checkpoint, settings)
    write_text(request.out, json.dumps(report, indent=1, allow_nan=False) + "\n")
    records = counted(report["data"]["records"], "record")
    print(f"{shown(request.out)}: {records}; {lip_errors.headline(report['metrics'])}")
