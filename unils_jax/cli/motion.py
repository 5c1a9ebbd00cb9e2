"""`unils render`, `unils view` and `unils convert-motion`: motion files in other forms."""

import argparse
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from data_pipelines.resampling import at_our_rate, check_rate, resample
from unils_jax.audio import read_audio, speaking_frames
from unils_jax.cli.arguments import (
    PeopleRequest,
    Request,
    add_head_arguments,
    add_people_arguments,
    add_raw_argument,
)
from unils_jax.errors import UserError, shown
from unils_jax.face.flame import FlameAsset
from unils_jax.face.head import load_head
from unils_jax.files import check_output
from unils_jax.inference.finishing import finish_file
from unils_jax.motion import BASES, FPS, MotionFile, load_motion, save_motion
from unils_jax.outputs import arkit
from unils_jax.outputs.drawn_head import standin_head
from unils_jax.outputs.gltf import Morphs, write_glb
from unils_jax.outputs.layouts import LAYOUTS, warn_of_losses
from unils_jax.outputs.page import FLAME_STAMP, make_page, page_script
from unils_jax.outputs.tables import read_csv, write_csv
from unils_jax.outputs.video import FULL_HD, render_video

log = logging.getLogger(__name__)

# Layouts that can be written, with the suffixes of their files; all but ARKit's can be read back.
READABLE = ("unils", *LAYOUTS)
SUFFIXES = {"unils": (".csv", ".npz", ".glb"), "arkit": (".csv", ".glb"), **dict.fromkeys(LAYOUTS, (".npz",))}
TABLES = (".csv", ".tsv", ".txt")


@dataclass(frozen=True, kw_only=True)
class RenderRequest(PeopleRequest):
    """The flags of `unils render`."""

    video: str
    size: str = "512"  # pixels of a person's square, or "1080p"
    no_captions: bool = False

    def __post_init__(self):
        check_output(self.video, ".mp4")
        if self.size != "1080p" and not self.size.isdecimal():
            raise UserError(f"--size must be a number of pixels such as 512, or 1080p, got {self.size!r}")


@dataclass(frozen=True, kw_only=True)
class ViewRequest(PeopleRequest):
    """The flags of `unils view`."""

    out: str
    names: list[str] | None = None  # of the people; None: person 1, person 2
    title: str | None = None  # None: the motion file's name
    embed_flame: bool = False

    def __post_init__(self):
        check_output(self.out, ".html")
        page_script()  # fails where the script has not been built, before any file is read
        if self.embed_flame and not self.flame:
            raise UserError("--embed_flame puts the geometry of --flame into the page; name the file with --flame")


@dataclass(frozen=True, kw_only=True)
class ConvertRequest(Request):
    """The flags of `unils convert-motion`."""

    motion: list[str]
    out: Path
    layout: str = "unils"  # of what is written
    source: str = "unils"  # layout of what is read
    basis: str = "flame"  # of what is read in another layout than ours
    fps: float | None = None  # frames a second of what is read; None: what the file says, or 25
    out_fps: int = round(FPS)  # frames a second of ARKit's table
    arkit_basis: str | None = None  # shapes to fit by least squares; None: by name
    flame: str | None = None
    embed_flame: bool = False
    raw: bool = False  # True: motion as it is read; False: finished, unless the file says it is

    def __post_init__(self):
        check_output(self.out, *SUFFIXES[self.layout])
        if self.fps is not None:
            check_rate(self.fps, "--fps")
        if self.out_fps != FPS and (self.layout, self.out.suffix) != ("arkit", ".csv"):
            raise UserError(f"--out_fps is of --layout arkit's .csv; motion is of {FPS:g} otherwise, leave it away")
        if not 1 <= self.out_fps <= 100:  # a timecode has two digits
            raise UserError(f"--out_fps must be 1 to 100 frames a second, got {self.out_fps}")
        if self.arkit_basis and self.layout != "arkit":
            raise UserError("--arkit_basis is what --layout arkit fits; add --layout arkit or leave it away")
        if self.arkit_basis and self.out.suffix == ".glb" and not self.flame:
            raise UserError("a .glb of the stand-in has ARKit shapes of its own; leave --arkit_basis away")
        if self.flame and (self.layout, self.out.suffix) != ("unils", ".glb") and not self.arkit_basis:
            raise UserError("--flame is the head of a .glb or of --arkit_basis; leave it away here")

    @property
    def imports(self) -> bool:
        """Whether a table or another layout becomes a motion file."""
        is_ours = self.source == "unils" and Path(self.motion[0]).suffix.lower() not in TABLES
        return not is_ours and self.layout == "unils" and self.out.suffix == ".npz"


def add_render_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils render`, with a working example."""
    parser.description = (
        "Draws the people of a motion file side by side, on FLAME's head with --flame and on a stand-in without, and "
        "adds the audio: the first person is heard left, the second right, and who speaks is written below. Motion is "
        "finished (smoothed, borders mended, shapes limited), the truth is not."
    )
    parser.epilog = """example:
  unils render motion.npz --video video.mp4 --audio a.wav --audio2 b.wav"""
    add_people_arguments(parser)
    parser.add_argument("--video", required=True, metavar="V.mp4", help="video to write")
    parser.add_argument(
        "--size",
        default=RenderRequest.size,
        metavar="PIXELS",
        help="side of each person's square, or 1080p: a picture of 1920 x 1080 (default: %(default)s)",
    )
    parser.add_argument("--no_captions", action="store_true", help="leave away who is who, and who speaks")
    parser.set_defaults(run=run_render)


def add_view_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils view`, with a working example."""
    parser.description = (
        "Makes one HTML file that any browser opens offline: the people of a motion file in 3D, their voices "
        "in sync, and curves of voice, jaw, lids and head over time. Space plays; `keys` on the page tells the rest."
    )
    parser.epilog = """example:
  unils view motion.npz --audio a.wav --audio2 b.wav --out page.html"""
    add_people_arguments(parser, embed_in="page")
    parser.add_argument("--out", required=True, metavar="PAGE.html", help="page to write")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="of the people (default: person 1, person 2)")
    parser.add_argument("--title", help="of the page (default: the motion file's name)")
    parser.set_defaults(run=run_view)


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils convert-motion`, with working examples."""
    parser.description = (
        "Takes motion elsewhere, and back. The suffix of --out chooses the kind of file, --layout the channels: our "
        "108 (unils: .csv, .npz, .glb), those of another project (.npz; some have one file a person), ARKit's 52 "
        "blendshapes with the angles of head and eyes (.csv as Live Link Face records it, one file a person; .glb). "
        "Motion in the stand-in basis becomes ARKit's by name; with "
        "--arkit_basis any motion does, by least squares on the vertices of the head."
    )
    parser.epilog = """examples:
  unils convert-motion motion.npz --out motion.csv
  unils convert-motion motion.npz --out motion.glb
  unils convert-motion motion.npz --out arkit.csv --layout arkit --out_fps 60
  unils convert-motion motion.npz --out talk.npz --layout artalk
  unils convert-motion talk.npz --from artalk --fps 30 --out motion.npz"""
    parser.add_argument("motion", nargs="+", metavar="FILE", help="motion file (.npz) or table (.csv); see --from")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help=".csv, .npz or .glb to write")
    parser.add_argument(
        "--layout",
        choices=tuple(SUFFIXES),
        default=ConvertRequest.layout,
        help="of what is written (default: %(default)s)",
    )
    parser.add_argument(
        "--from",
        choices=READABLE,
        default=ConvertRequest.source,
        dest="source",
        help="layout of what is read (default: %(default)s)",
    )
    parser.add_argument(
        "--basis",
        choices=tuple(BASES),
        default=ConvertRequest.basis,
        help="of what another layout than ours reads (default: %(default)s)",
    )
    parser.add_argument(
        "--fps",
        type=float,
        metavar="RATE",
        help="frames a second of what is read, resampled to 25 (default: what the file says, else 25)",
    )
    parser.add_argument(
        "--out_fps",
        type=int,
        default=ConvertRequest.out_fps,
        metavar="RATE",
        help="frames a second of ARKit's table, such as 30 or 60 (default: %(default)s)",
    )
    parser.add_argument(
        "--arkit_basis", metavar="B.npz", help="names [K], shapes [K, V, 3] in metres, on the head's mesh"
    )
    add_head_arguments(parser, embed_in=".glb")
    add_raw_argument(parser)
    parser.set_defaults(run=run_convert)


def run_render(args: argparse.Namespace) -> None:
    """Renders a video.

    Raises UserError for every mistake of the user, before anything is written.
    """
    request = RenderRequest.from_args(args)
    people = read_people(request)
    file = people.file
    summary = render_video(
        request.video,
        file.motion,
        people.head,
        people.audio,
        expression_basis=file.expression_basis,
        size=FULL_HD if request.size == "1080p" else int(request.size),
        captions=[""] * len(file.motion) if request.no_captions else None,
        speaking=None if request.no_captions else people.speaking(),
        truth=people.truth,
    )
    if people.notice:
        log.info(people.notice)
    print(
        f"{shown(request.video)}: {len(file.motion)} head(s), {summary.num_frames / file.fps:.1f} s, "
        f"{summary.frames_per_s:.1f} frames/s ({summary.graphics})"
    )


def run_view(args: argparse.Namespace) -> None:
    """Makes a page. Raises UserError for every mistake of the user, before anything is written."""
    view(ViewRequest.from_args(args))


def view(request: ViewRequest) -> None:
    """Writes the page of a motion file and prints its size."""
    people = read_people(request)
    file = people.file
    if request.embed_flame:
        log.warning("licence: %s", FLAME_STAMP)
    summary = make_page(
        request.out,
        file.motion,
        people.head,
        people.audio,
        expression_basis=file.expression_basis,
        state="finished" if file.finished else "raw",
        truth=people.truth,
        names=request.names,
        title=request.title or Path(request.motion).stem,
        embed_flame=request.embed_flame,
    )
    if people.notice:
        log.info(people.notice)
    num_people, frames = file.motion.shape[:2]
    print(
        f"{shown(request.out)}: {num_people} x {frames} frames, {summary.total / 1e6:.1f} MB (head and motion "
        f"{summary.motion / 1e6:.2f}, audio {summary.audio / 1e6:.2f}, script {summary.script / 1e6:.2f})"
    )


@dataclass(frozen=True)
class People:
    """A motion file with the audio and names that are shown with it."""

    file: MotionFile
    truth: Float[np.ndarray, "Q U 108"] | None
    audio: list[Float[np.ndarray, " _"]] | None  # one or two tracks at 16 kHz; None: no audio
    head: FlameAsset
    notice: str  # what was limited, for the log once the output is there; "" where nothing was

    def speaking(self) -> Bool[np.ndarray, "P T"] | None:
        """Returns the frames in which each person speaks; None where not everybody has a track."""
        people, frames = self.file.motion.shape[:2]
        if self.audio is None or len(self.audio) != people:
            return None
        speaking = np.zeros((people, frames), bool)
        found = speaking_frames(self.audio)[:, :frames]
        speaking[:, : found.shape[1]] = found
        return speaking


def read_people(request: PeopleRequest) -> People:
    """Reads the files that a request names.

    Raises UserError where one is missing or unfit, or the truth does not belong to the motion.
    """
    if request.audio2 and not request.audio:
        raise UserError("--audio2 is the second person's track; give the first with --audio")
    file = load_motion(request.motion)
    truth = load_motion(request.truth) if request.truth else None
    if truth is not None and truth.expression_basis != file.expression_basis:
        raise UserError(
            f"--truth {request.truth} is of the {truth.expression_basis!r} expression basis, the motion of "
            f"{file.expression_basis!r}; give motion of the same basis"
        )
    audio = [read_audio(path) for path in (request.audio, request.audio2) if path] or None
    file, notice = finish_file(file, request.motion, raw=request.raw)
    return People(file, None if truth is None else truth.motion, audio, load_head(request.flame), notice)


def run_convert(args: argparse.Namespace) -> None:
    """Converts motion.

    Raises UserError for every mistake of the user, before anything is written.
    """
    request = ConvertRequest.from_args(args)
    file = read_motion(request)
    # What other programs made comes in as it is: it is finished when it is drawn or goes out again.
    notice = ""
    if not request.imports:
        file, notice = finish_file(file, request.motion[0], raw=request.raw)
    if request.out_fps != FPS:
        file = replace(file, motion=resample(file.motion, FPS, float(request.out_fps)))
    if request.layout == "arkit":
        written = convert_to_arkit(request, file)
    elif request.out.suffix == ".glb":
        written = convert_to_glb(request, file)
    else:
        written = convert_channels(request, file)
    if notice:
        log.info(notice)
    people, frames = file.motion.shape[:2]
    print(f"{shown(written)}: {people} x {frames} frames")


def read_motion(request: ConvertRequest) -> MotionFile:
    """Reads motion of any known layout. Raises UserError, naming the file."""
    paths = [Path(name) for name in request.motion]
    for path in paths:
        if not path.is_file():
            raise UserError(f"motion file {path} does not exist")
    most = LAYOUTS[request.source].files if request.source in LAYOUTS else 1
    if len(paths) > most:
        several = " or ".join(f"--from {name}" for name, layout in LAYOUTS.items() if layout.files > 1)
        raise UserError(f"{len(paths)} files were given; one is read, or with {several} one for each of two people")
    origin = {"converted_from": [path.name for path in paths], "layout": request.source}
    if request.source in LAYOUTS:
        return MotionFile(LAYOUTS[request.source].read(paths, request.fps), request.basis, origin)
    if paths[0].suffix.lower() in TABLES:
        return MotionFile(*read_csv(paths[0], request.fps), origin)
    file = load_motion(paths[0], any_rate=True)
    rate = request.fps or check_rate(file.fps, f"{paths[0]}: fps")
    return replace(file, motion=at_our_rate(file.motion, rate, str(paths[0])), fps=FPS)


def convert_channels(request: ConvertRequest, file: MotionFile) -> str:
    """Writes a motion file, a table or another project's channels; returns the paths in words."""
    if request.layout in LAYOUTS:
        warn_of_losses(request.layout, file)
        return ", ".join(map(str, LAYOUTS[request.layout].write(request.out, file.motion)))
    if request.out.suffix == ".csv":
        write_csv(request.out, file.motion, file.expression_basis)
    else:
        about = {"expression_basis": file.expression_basis, "source": file.source, "finished": file.finished}
        save_motion(request.out, file.motion, **about)
    return str(request.out)


def convert_to_glb(request: ConvertRequest, file: MotionFile, morphs: Morphs | None = None) -> str:
    """Writes glTF, with other shapes than the head's where they are given; returns its path."""
    if request.embed_flame and not request.flame:
        raise UserError("--embed_flame puts the geometry of --flame into the file; name the model with --flame")
    head = load_head(request.flame)
    if request.embed_flame:
        log.warning("licence: the file contains FLAME's geometry; all who hold or share it are bound by its licence")
    about = {"expression_basis": file.expression_basis, "embed_flame": request.embed_flame, "morphs": morphs}
    write_glb(request.out, file.motion, head, **about)
    return str(request.out)


def convert_to_arkit(request: ConvertRequest, file: MotionFile) -> str:
    """Writes ARKit's shapes as tables or glTF; returns the paths and, for a fit, what remains."""
    basis = file.expression_basis
    if request.arkit_basis is None:
        if basis != "standin":
            raise UserError(
                f"motion has the {basis} basis, whose channels have no names: give --arkit_basis, 52 shapes on FLAME's "
                "mesh, and --flame"
            )
        found, how, shapes = arkit.by_name(file.motion), "by name", None
    else:
        head = load_head(request.flame)
        if head.name != basis:
            remedy = "give --flame" if basis == "flame" else "leave --flame away"
            raise UserError(f"motion has the {basis} basis, the head is {head.name}: {remedy}")
        shapes = arkit.read_basis(request.arkit_basis, head)
        found = arkit.by_fit(file.motion, head, *shapes)
        how = f"fit: {found.residual_mm:.2f} mm of {found.motion_mm:.2f} mm remain"
    arkit.say_cuts(found)
    if request.out.suffix == ".glb":
        names, moved = shapes or arkit.standin_basis(standin_head().asset)
        return f"{convert_to_glb(request, file, Morphs(names, moved, found.of(names)))} ({how})"
    paths = arkit.write_live_link(request.out, found.coefficients, file.motion, request.out_fps)
    return f"{', '.join(map(str, paths))} ({how})"
