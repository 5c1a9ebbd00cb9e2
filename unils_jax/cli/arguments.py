"""What several commands share: the step from flags to a request, and common flags."""

import argparse
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from data_pipelines.cluster import ENGINES
from data_pipelines.resampling import check_rate
from data_pipelines.sources.tracking import TrackOptions
from data_pipelines.tracks.mapping import parse_keys, parse_rotations
from data_pipelines.tracks.names import LAYOUTS
from data_pipelines.tracks.rotations import WIDTHS
from unils_jax.errors import UserError
from unils_jax.motion import load_motion
from unils_jax.systems.registry import SYSTEMS

RequestOf = TypeVar("RequestOf", bound="Request")


class Request:
    """The flags of one command as a frozen dataclass.

    Nothing below the command line meets argparse.
    """

    @classmethod
    def from_args(cls: type[RequestOf], args: argparse.Namespace) -> RequestOf:
        """Builds the request from the flags that have the names of its fields."""
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class PeopleRequest(Request):
    """A motion file and what is shown with it."""

    motion: str
    audio: str | None = None  # the first person's track; None: silent
    audio2: str | None = None  # the second person's track
    truth: str | None = None  # motion file to compare with
    flame: str | None = None  # FLAME's model file; None: the stand-in head
    raw: bool = False  # True: motion as the file has it; False: finished, unless the file says it is


@dataclass(frozen=True, kw_only=True)
class TrackRequest(Request):
    """What flags say of arrays in files of face trackers, and of systems that write as these do."""

    tracker: str = TrackOptions.layout  # whose names the files have; auto: found out
    keys: str | None = None  # parts and arrays; None: by their names
    rotations: str | None = None  # kinds of rotations; None: by their widths
    fps: float | None = None  # None: as the files or their videos say

    @property
    def track_flags(self) -> dict[str, object]:
        """The flags that only such files take, as far as they are given."""
        given = {"--layout": self.tracker, "--keys": self.keys, "--rotations": self.rotations, "--fps": self.fps}
        return {flag: value for flag, value in given.items() if value not in (None, TrackOptions.layout)}

    def track_options(self, max_gap_s: float = TrackOptions.max_gap_s) -> TrackOptions:
        """Returns the flags' values. Raises UserError for a wrong one."""
        if self.fps is not None:
            check_rate(self.fps, "--fps")
        keys, rotations = parse_keys(self.keys or ""), parse_rotations(self.rotations or "")
        return TrackOptions(self.tracker, keys, rotations, self.fps, max_gap_s)


def add_track_arguments(parser: argparse.ArgumentParser, where: str) -> None:
    """Adds the flags of a `TrackRequest`; `where` says for the help what they go with."""
    parser.add_argument(
        "--layout",
        dest="tracker",
        choices=("auto", *LAYOUTS),
        default=TrackRequest.tracker,
        help=f"whose names the arrays have (default: auto, by the names; {where})",
    )
    parser.add_argument(
        "--keys", metavar="PART=NAME[A:B],...", help="arrays and columns, as expression=exp,jaw=pose[3:6]"
    )
    parser.add_argument("--rotations", metavar="[PART=]KIND,...", help=f"kinds of rotations: {', '.join(WIDTHS)}")
    parser.add_argument("--fps", type=float, metavar="F", help="frames a second (default: as files or videos say)")


def add_people_arguments(parser: argparse.ArgumentParser, embed_in: str = "") -> None:
    """Adds the flags of a `PeopleRequest`; `embed_in` as for `add_head_arguments`."""
    parser.add_argument("motion", metavar="M.npz", help="motion file, as `unils decode --out` writes it")
    parser.add_argument("--audio", metavar="A", help="the first person's track, any rate and format")
    parser.add_argument("--audio2", metavar="B", help="the second person's track")
    parser.add_argument("--truth", metavar="T.npz", help="motion file of what the people really did, to compare with")
    add_head_arguments(parser, embed_in)
    add_raw_argument(parser)


def add_raw_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --raw, which leaves motion as it was decoded."""
    parser.add_argument(
        "--raw",
        action="store_true",
        help="motion as it was decoded: not smoothed, window borders not mended, shapes not limited",
    )


def add_head_arguments(parser: argparse.ArgumentParser, embed_in: str = "") -> None:
    """Adds --flame, and --embed_flame where an output can hold FLAME's geometry.

    `embed_in` names that output.
    """
    parser.add_argument("--flame", metavar="FILE", help="generic_model.pkl of FLAME 2020 (default: the stand-in head)")
    if embed_in:
        parser.add_argument(
            "--embed_flame",
            action="store_true",
            help=f"put FLAME's geometry into the {embed_in}, which is then under FLAME's licence; with --flame",
        )


def add_engine_arguments(parser: argparse.ArgumentParser, what: str, actors: str) -> None:
    """Adds --engine and --actors.

    Args:
        parser: Gets the flags.
        what: What is done there, for the help.
        actors: How many there are by default, in words.
    """
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="local",
        help=f"where {what}: on this machine, or by actors of a Ray cluster (default: %(default)s)",
    )
    parser.add_argument("--actors", type=int, metavar="N", help=f"of --engine ray (default: {actors})")


def add_encoder_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --audio_encoder, which a checkpoint without its own published encoder needs."""
    parser.add_argument("--audio_encoder", metavar="DIR", help="wav2vec2 or Mimi: transformers folder or hub name")


def add_sound_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say which sound of a file is meant."""
    parser.add_argument(
        "--channels",
        choices=("mix", "split"),
        default="mix",
        help="split: the channels of --audio are two people (default: mix, one person)",
    )
    for name in ("track", "track2"):
        whose = "--audio" if name == "track" else "--audio2"
        parser.add_argument(
            f"--{name}", type=int, default=0, metavar="N", help=f"audio track of {whose}, from 1 (default: its first)"
        )


def readers_of(name: str) -> str:
    """Returns the titles of the systems that read an input."""
    return ", ".join(system.title for system in SYSTEMS.values() if name in system.inputs)


def add_partner_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say what the second person does."""
    partner = parser.add_argument_group(
        readers_of("other_motion"), "what the partner does, which this model sees (default: nothing)"
    ).add_mutually_exclusive_group()
    partner.add_argument("--motion2", metavar="M.npz", help="motion file of the second person, or of both in order")
    partner.add_argument("--motion2_by", metavar="PATH", help="UniLS dialogue that first predicts it from the audio")


def add_annotation_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say which annotation is predicted, and of which subject."""
    group = parser.add_argument_group(readers_of("annotation"), "which annotation, and who it is")
    group.add_argument(
        "--annotation", metavar="NAME", help="one that it was trained on (default: motion_108 or its only)"
    )
    group.add_argument("--subject", type=int, metavar="N", help="row of its identity table (default: nobody's)")
    group.add_argument(
        "--template", metavar="F.npy", help="the neutral face [D], scaled as in training (default: zero)"
    )
    group.add_argument("--pca", metavar="DIR", help="set with the pca.npz that a published checkpoint leaves out")
    group.add_argument(
        "--fps", type=int, choices=(25, 30), help="of the annotation (default: 25 of motion_108 and BIWI, else 30)"
    )


def read_clip(
    path: str | None, name: str, num_people: int, basis: str, frames: int
) -> Float[np.ndarray, "P F 108"] | None:
    """Reads the `frames` of a motion file that style (its middle) or prev (its end) take.

    One person's clip serves both; None stays None. Raises UserError where it is too short, of
    another number of people, or of another expression basis.
    """
    if path is None:
        return None
    clip = load_motion(path)
    motion, (people, there) = clip.motion, clip.motion.shape[:2]
    if clip.expression_basis != basis:
        raise UserError(
            f"--{name} {path} is of the {clip.expression_basis!r} expression basis, the checkpoint of {basis!r}; "
            "use motion that this checkpoint or its data made"
        )
    if there < frames:
        raise UserError(f"--{name} {path} has {there} frames; at least {frames} are needed")
    if people not in (1, num_people):
        raise UserError(f"--{name} {path} holds {people} people, the decode {num_people}; give one or as many")
    start = (there - frames) // 2 if name == "style" else there - frames
    return motion[:, start : start + frames]
