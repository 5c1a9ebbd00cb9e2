"""What several commands share: the step from flags to a request, and common flags."""

import argparse
from dataclasses import dataclass, fields
from typing import TypeVar

RequestOf = TypeVar("RequestOf", bound="Request")

DTYPES = ("float32", "bfloat16")


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


def add_people_arguments(parser: argparse.ArgumentParser, embed_in: str = "") -> None:
    """Adds the flags of a `PeopleRequest`; `embed_in` as for `add_head_arguments`."""
    parser.add_argument("motion", metavar="M.npz", help="motion file, as `unils decode --out` writes it")
    parser.add_argument("--audio", metavar="A", help="the first person's track, any rate and format")
    parser.add_argument("--audio2", metavar="B", help="the second person's track")
    parser.add_argument("--truth", metavar="T.npz", help="motion file of what the people really did, to compare with")
    add_head_arguments(parser, embed_in)


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


def add_encoder_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --audio_encoder, which a checkpoint without its own published encoder needs."""
    parser.add_argument("--audio_encoder", metavar="DIR", help="wav2vec2: transformers folder or hub name")
