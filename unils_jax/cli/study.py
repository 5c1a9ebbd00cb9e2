"""`unils study`: a page on which people compare two systems, and what their answers say."""

import argparse
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from unils_jax.audio import read_audio
from unils_jax.cli.arguments import Request, add_head_arguments, add_raw_argument
from unils_jax.errors import UserError, counted
from unils_jax.evaluation.analyses.study import analyse, read_answers, table
from unils_jax.face.head import load_head
from unils_jax.files import check_output, markdown_table, write_text
from unils_jax.inference.finishing import finish_file
from unils_jax.inference.recordings import Recording, find_recordings
from unils_jax.motion import FPS, SAMPLES_PER_FRAME, load_motion
from unils_jax.outputs.page import FLAME_STAMP
from unils_jax.outputs.study import CRITERIA, Pair, StudyOptions, make_study

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StudyRequest(Request):
    """The flags of `unils study`."""

    motion: list[Path]  # folders of two systems; [] with answers
    audio: Path | None
    answers: Path | None  # None: a study is made
    out: Path | None
    names: list[str] | None = None  # of the systems; None: their folders'
    criteria: list[str]
    clips: int = 20  # at most
    seconds: float = 10.0  # of a clip, at most
    checks: int = 2
    seed: int = 0
    title: str = StudyOptions.title
    flame: str | None = None
    embed_flame: bool = False
    raw: bool = False

    def __post_init__(self):
        if self.answers:
            if self.motion or self.audio:
                raise UserError("--answers reads what raters sent; leave the motion and --audio away")
            if self.out:
                check_output(self.out, ".json")
            return
        if len(self.motion) != 2 or not self.audio or not self.out:
            raise UserError("a study takes two folders of motion, --audio DIR and --out DIR; or --answers DIR alone")
        for folder in (*self.motion, self.audio):
            if not folder.is_dir():
                raise UserError(f"{folder} is no folder; give folders of motion files and of audio")
        if self.clips < 1 or not self.seconds >= 1 or self.seed < 0:
            raise UserError(
                "--clips must be 1 or more, --seconds 1 or more and --seed 0 or more, got "
                f"{self.clips}, {self.seconds:g} and {self.seed}"
            )
        check_output(self.out / "index.html", ".html")

    @property
    def options(self) -> StudyOptions:
        """What is asked."""
        names = self.names or [folder.resolve().name for folder in self.motion]
        return StudyOptions(
            systems=(names[0], names[1]),
            criteria=tuple(self.criteria),
            num_checks=self.checks,
            seed=self.seed,
            title=self.title,
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `unils study`, with working examples."""
    parser.description = (
        "Makes one HTML page on which people compare two systems, pair by pair, by several criteria: it opens offline "
        "or from any server of static files, and hands each rater's answers out as a JSON file. With --answers it "
        "reads these files: preferences with 95 % intervals, and how far the raters agree."
    )
    parser.epilog = """examples:
  unils study ours/ theirs/ --audio recordings/ --out study
  unils study --answers answers/ --out study.json"""
    parser.add_argument(
        "motion", nargs="*", type=Path, metavar="DIR", help="two folders of motion files of the same names"
    )
    parser.add_argument(
        "--audio", type=Path, metavar="DIR", help="NAME_speaker1 and NAME_speaker2, or NAME, of NAME.npz"
    )
    parser.add_argument("--answers", type=Path, metavar="DIR", help="the JSON files that raters downloaded")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="folder of the page; with --answers the report (.json), if it is wanted",
    )
    parser.add_argument(
        "--names", nargs=2, metavar="NAME", help="of the systems in the answers (default: the folders')"
    )
    parser.add_argument(
        "--criteria",
        nargs="+",
        default=list(CRITERIA),
        choices=list(CRITERIA),
        metavar="NAME",
        help=f"what is judged (default: {' '.join(CRITERIA)})",
    )
    parser.add_argument("--clips", type=int, default=StudyRequest.clips, help="at most so many (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=StudyRequest.seconds, help="of a clip (default: %(default)s)")
    parser.add_argument(
        "--checks",
        type=int,
        default=StudyRequest.checks,
        help="attention checks: a clip next to a face that does not move (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=StudyRequest.seed, help="of clips, order and sides (default: 0)")
    parser.add_argument("--title", default=StudyRequest.title, help="of the page (default: %(default)s)")
    add_head_arguments(parser, embed_in="page")
    add_raw_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Makes a study or reads its answers. Raises UserError before anything is written."""
    request = StudyRequest.from_args(args)
    if request.answers:
        report_answers(request.answers, request.out)
    else:
        write_study(request)


def write_study(request: StudyRequest) -> None:
    """Writes the page and prints what is on it."""
    options = request.options
    recordings = {recording.name: recording for recording in find_recordings(request.audio, quiet=True)}
    pairs, bases = [], set()
    for name in choose_clips(request, recordings):
        pair, basis = read_pair(request, recordings[name])
        pairs.append(pair)
        bases |= basis
    if len(bases) > 1:
        raise UserError("the motion files are of both expression bases; a study compares motion of one")
    (basis,) = bases
    alone = [pair.name for pair in pairs if len(pair.audio) < 2]
    if alone and "reaction" in options.criteria:
        others = " ".join(name for name in options.criteria if name != "reaction")
        raise UserError(f"{alone[0]} has one person's sound, so that no reaction is judged; give --criteria {others}")
    head = load_head(request.flame)
    if basis != head.name:
        remedy = "; give --flame" if basis == "flame" else ""
        log.warning("motion has the %s basis, the head has not: only jaw, gaze and head move%s", basis, remedy)
    if request.embed_flame:
        log.warning("licence: %s", FLAME_STAMP)
    path = request.out / "index.html"
    size = make_study(path, pairs, head, options, expression_basis=basis, embed_flame=request.embed_flame)
    seconds = sum(pair.motions[0].shape[1] for pair in pairs) / FPS
    print(
        f"{path}: {counted(len(pairs), 'pair')} and {counted(options.num_checks, 'check')}, {seconds:.0f} s of "
        f"{options.systems[0]} against {options.systems[1]}, {size / 1e6:.1f} MB"
    )


def choose_clips(request: StudyRequest, recordings: dict[str, Recording]) -> list[str]:
    """Returns the names that both systems and the audio have, or `--clips` of them by the seed."""
    names = [{path.stem for path in folder.glob("*.npz")} for folder in request.motion]
    common = sorted(set.intersection(*names, set(recordings)))
    if not common:
        folders = ", ".join(map(str, (*request.motion, request.audio)))
        raise UserError(f"no name is in all of {folders}; NAME.npz needs NAME_speaker1 and NAME_speaker2, or NAME")
    if left := sorted(set.union(*names) - set(common)):
        log.warning("left out, not in both folders and the audio: %s", ", ".join(left))
    chosen = np.random.default_rng(request.seed).permutation(len(common))[: request.clips]
    return [common[i] for i in sorted(chosen)]


def read_pair(request: StudyRequest, recording: Recording) -> tuple[Pair, set[str]]:
    """Reads a clip as both systems move it, and their bases.

    What is longer than `--seconds` is cut at a place that the seed and the name decide.
    """
    files, motions = [], []
    for folder in request.motion:
        path = folder / f"{recording.name}.npz"
        file, notice = finish_file(load_motion(path), path, raw=request.raw)
        if notice:
            log.info(notice)
        files.append(file)
    shapes = [file.motion.shape for file in files]
    if shapes[0][0] != shapes[1][0] or shapes[0][0] > 2:
        raise UserError(
            f"{recording.name} must be one or two people, the same in both, got {shapes[0][0]}, {shapes[1][0]}"
        )
    audio = [read_audio(path) for path in recording.tracks]
    there = min(shapes[0][1], shapes[1][1])
    frames = min(there, round(request.seconds * FPS))
    seed = [request.seed, *recording.name.encode()]
    first = int(np.random.default_rng(seed).integers(there - frames + 1))
    motions = [file.motion[:, first : first + frames] for file in files]
    sound = [_cut(track, first, frames) for track in audio]
    return Pair(recording.name, (motions[0], motions[1]), sound), {file.expression_basis for file in files}


def _cut(track: Float[np.ndarray, " N"], first: int, frames: int) -> Float[np.ndarray, " M"]:
    return track[first * SAMPLES_PER_FRAME : (first + frames) * SAMPLES_PER_FRAME]


def report_answers(folder: Path, out: Path | None) -> None:
    """Prints the table of a study's answers and writes the report where it is wanted."""
    report = analyse(read_answers(folder))
    for study in report["studies"]:
        for rater in study["left_out"]:
            passed, asked = rater["checks"]
            log.warning("left out: %s (%s) passed %d of %d checks", rater["rater"], rater["file"], passed, asked)
    if out:
        write_text(out, json.dumps(report, indent=1) + "\n")
    print("\n".join(markdown_table(table(report))))
