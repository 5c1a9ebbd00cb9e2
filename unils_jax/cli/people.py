"""What `unils render` and `unils view` are both given: a motion file, voices, the truth, a head."""

import argparse
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class People:
    """A motion file, the truth's motion [P, T, 108] or None, each track [N] at 16 kHz or None, and the head's asset."""

    file: Any
    truth: Any
    audio: list | None
    asset: Any


def add_people_arguments(parser: argparse.ArgumentParser, embed_in: str = "") -> None:
    """Sets the flags that `load_people` reads; `embed_in` as of `add_head_arguments`."""
    parser.add_argument("motion", metavar="M.npz", help="motion file, as `unils decode --out` writes it")
    parser.add_argument("--audio", metavar="A", help="the first person's track, any rate and format")
    parser.add_argument("--audio2", metavar="B", help="the second person's track")
    parser.add_argument("--truth", metavar="T.npz", help="motion file of what the people really did, to compare with")
    add_head_arguments(parser, embed_in)


def add_head_arguments(parser: argparse.ArgumentParser, embed_in: str = "") -> None:
    """Sets --flame, and --embed_flame where `embed_in`, what the command writes, can hold FLAME's geometry."""
    parser.add_argument("--flame", metavar="FILE", help="generic_model.pkl of FLAME 2020 (default: the stand-in head)")
    if embed_in:
        parser.add_argument(
            "--embed_flame",
            action="store_true",
            help=f"put FLAME's geometry into the {embed_in}, which is then under FLAME's licence; with --flame",
        )


def load_people(args: argparse.Namespace) -> People:
    """Reads what the flags name. Raises UserError where a file is not there or not fit, or the truth does not belong
    to the motion."""
    from unils_jax.audio import read_audio
    from unils_jax.errors import UserError
    from unils_jax.face.flame_file import load_flame
    from unils_jax.face.standin import standin_asset
    from unils_jax.motion import load_motion

    if args.audio2 and not args.audio:
        raise UserError("--audio2 is the second person's track; give the first with --audio")
    file = load_motion(args.motion)
    truth = load_motion(args.truth) if args.truth else None
    if truth is not None and truth.expression_basis != file.expression_basis:
        raise UserError(
            f"--truth {args.truth} is of the {truth.expression_basis!r} expression basis, the motion of "
            f"{file.expression_basis!r}; give motion of the same basis"
        )
    audio = [read_audio(path) for path in (args.audio, args.audio2) if path] or None
    asset = load_flame(args.flame) if args.flame else standin_asset()
    return People(file, None if truth is None else truth.motion, audio, asset)
