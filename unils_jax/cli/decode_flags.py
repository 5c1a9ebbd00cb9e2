"""The flags of `unils decode`."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_pipelines.cluster import check_engine
from unils_jax.cli.arguments import (
    Request,
    add_annotation_arguments,
    add_encoder_argument,
    add_engine_arguments,
    add_partner_arguments,
    add_raw_argument,
    add_sound_arguments,
)
from unils_jax.errors import UserError
from unils_jax.inference.sampling import DTYPES, ByScale, Sampling
from unils_jax.systems.registry import SYSTEMS

DEMO_MODEL = (
    "demo model trained on synthetic conversations; stand-in basis: it knows no real voice or face, give --checkpoint "
    "for one that does"
)
BATCH = 4
BY_SCALE = "one, or one for each scale with commas between (default: the checkpoint's own)"
# Which input of a system a flag gives; a system without that input has no use for the flag.
FLAG_INPUTS = {
    "style": "style",
    "prev": "prev",
    "batch": "prev",  # conversations are decoded together chunk after chunk
    "motion2": "other_motion",
    "motion2_by": "other_motion",
    "annotation": "annotation",
    "subject": "identity",
    "template": "template",
    "pca": "annotation",
    "fps": "annotation",
}


@dataclass(frozen=True, kw_only=True)
class DecodeRequest(Request):
    """The flags of `unils decode`."""

    audio: str  # the first person's track; a folder or a list of several conversations
    audio2: str | None = None
    channels: Literal["mix", "split"] = "mix"  # of a file: one person, or a person each
    track: int = 0  # which audio track of --audio, from 1; 0: its first
    track2: int = 0  # the same of --audio2
    checkpoint: str | None = None  # None: the demo model of the package
    out: str | None = None  # motion file, a folder for several conversations
    video: str | None = None
    raw: bool = False  # True: motion as it was decoded; False: finished, see `finishing.finish`
    adapter: str | None = None
    audio_encoder: str | None = None
    flame: str | None = None  # head of the video; None: the stand-in
    style: str | None = None
    prev: str | None = None
    tau: ByScale | None = None  # this and the next two, None: the checkpoint's own
    cfg: ByScale | None = None
    top_p: float | None = None
    seed: int = 0
    people: int | None = None  # None: as many as there are tracks, one where the partner's motion is seen
    batch: int | None = None  # conversations at a time; None: BATCH of several, else 1
    dtype: str = "float32"
    motion2: str | None = None
    motion2_by: str | None = None
    annotation: str | None = None
    subject: int | None = None
    template: str | None = None
    pca: str | None = None
    fps: int | None = None
    engine: str = "local"  # of several conversations: this process, or actors of a Ray cluster
    actors: int | None = None  # of Ray; None: one an accelerator, without any one a node

    def __post_init__(self):
        check_engine(self.engine, self.actors)
        if self.engine == "ray" and not self.several:
            raise UserError("--engine ray decodes several conversations; give --audio a folder or a list")
        if not self.out and not self.video:
            raise UserError("nothing to write: give --out M.npz, --video V.mp4 or both")
        if self.flame and not self.video:
            raise UserError("--flame is the head of the video; name one with --video V.mp4 or leave --flame away")
        if self.adapter and not self.checkpoint:
            raise UserError("--adapter is of a prior; name that with --checkpoint PATH")
        if not 0 <= self.seed < 1 << 32:
            raise UserError(f"--seed must be from 0 to {(1 << 32) - 1}, got {self.seed}")
        if self.batch is not None and self.batch < 1:
            raise UserError(f"--batch must be at least 1, got {self.batch}")
        if self.several:
            if self.channels == "split" or self.track:
                raise UserError("--channels split and --track go with one file; give the files of a folder one by one")
            if self.audio2 or self.video:
                raise UserError(
                    "--audio2 and --video go with one conversation; a folder pairs NAME_speaker1 and NAME_speaker2, "
                    "and `unils render` makes videos of motion files"
                )
            if Path(self.out).suffix == ".npz":
                raise UserError(
                    f"--audio {self.audio} holds several conversations, --out {self.out} one; name a folder"
                )

    @property
    def several(self) -> bool:
        """Whether --audio names several conversations."""
        return Path(self.audio).is_dir() or Path(self.audio).suffix.lower() == ".txt"

    @property
    def tracks(self) -> list[str]:
        """The audio files of one conversation."""
        return [path for path in (self.audio, self.audio2) if path]

    @property
    def written(self) -> str:
        """The outputs, for a summary line."""
        return ", ".join(path for path in (self.out, self.video) if path)

    def sampling(self, own: Sampling) -> Sampling:
        """Returns how bits are drawn: `own`, the checkpoint's, but for the flags that are given."""
        return own.but(self.tau, self.cfg, self.top_p)


def _by_scale(text: str) -> ByScale:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, or one for each scale as 2,1.5,1; got {text!r}") from None
    return values if len(values) > 1 else values[0]


def add_request_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils decode`, with working examples."""
    parser.description = (
        "Motion of one person, or with --audio2 of both, from the audio of a conversation. Without --audio2 the other "
        "track is silence. --audio also takes a folder, where NAME_speaker1.EXT and NAME_speaker2.EXT are the two "
        "tracks of NAME and every other audio file is a conversation of one track, or a list (.txt) with one "
        "conversation a line, one file or two with a tab between them; --out is a folder then, and gets NAME.npz."
    )
    parser.epilog = """example:
  unils decode --audio a.wav --audio2 b.wav --video video.mp4
  unils decode --checkpoint runs/demo/dialogue --audio a.wav --audio2 b.wav --out motion.npz --video video.mp4
  unils decode --checkpoint runs/demo/dialogue --audio recordings/ --out motions/ --batch 8
  unils decode --checkpoint runs/partner --audio a.wav --audio2 b.wav --motion2 b.npz --out motion.npz
  unils decode --checkpoint runs/annotations --audio a.wav --annotation motion_108 --out motion.npz"""
    defaults = DecodeRequest
    names = ", ".join(system.title for system in SYSTEMS.values())
    parser.add_argument(
        "--checkpoint",
        metavar="PATH",
        help=f"{names}: workdir or file; with --adapter a prior (default: our demo model)",
    )
    parser.add_argument(
        "--audio", required=True, metavar="A", help="the first person's track, any rate and format; or a folder or list"
    )
    parser.add_argument("--audio2", metavar="B", help="the second person's track")
    add_sound_arguments(parser)
    parser.add_argument("--out", metavar="M.npz", help="motion file to write; a folder for several conversations")
    parser.add_argument("--video", metavar="V.mp4", help="video to write")
    add_raw_argument(parser)
    parser.add_argument(
        "--adapter", metavar="NAME", help="adapter of a prior: a .safetensors, or a name in its adapters/"
    )
    add_encoder_argument(parser)
    parser.add_argument("--flame", metavar="FILE", help="generic_model.pkl of FLAME 2020, for the video")
    parser.add_argument("--style", metavar="M.npz", help="motion file whose middle 100 frames set the style")
    parser.add_argument("--prev", metavar="M.npz", help="motion file whose last 100 frames come before the first")
    for name, kind, meaning in (
        ("tau", _by_scale, f"temperature, 0 is greedy; {BY_SCALE}"),
        ("cfg", _by_scale, f"guidance, up to 1 is off; {BY_SCALE}"),
        ("top_p", float, "nucleus per bit (default: the checkpoint's own)"),
        ("seed", int, "the same seed gives the same motion (default: %(default)s)"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=getattr(defaults, name), help=meaning)
    parser.add_argument("--people", type=int, choices=(1, 2), help="1 decodes the first person alone of two tracks")
    parser.add_argument(
        "--batch", type=int, metavar="N", help=f"conversations at a time (default: {BATCH} of several, else 1)"
    )
    parser.add_argument(
        "--dtype", default=defaults.dtype, choices=DTYPES, help="of encoder and prior (default: %(default)s)"
    )
    add_engine_arguments(parser, "several conversations are decoded", "one an accelerator, else one a node")
    add_partner_arguments(parser)
    add_annotation_arguments(parser)
