"""`unils decode`: audio files in, motion files and a video out."""

import argparse
import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unils_jax.cli import decode_dualtalk, decode_unitalker

DEMO_MODEL = (
    "demo model trained on synthetic conversations; stand-in basis: it knows no real voice or face, give --checkpoint "
    "for one that does"
)

log = logging.getLogger(__name__)

BATCH = 4
SPEAKERS = ("_speaker1", "_speaker2")
AUDIO_SUFFIXES = {f".{name}" for name in "wav flac ogg opus mp3 m4a aac aif aiff mp4 mov mkv webm".split()}


@dataclass(frozen=True)
class Recording:
    """A conversation's files: one track or two, and the name of its motion file."""

    name: str
    tracks: tuple[Path, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sets the description, a working example and the flags."""
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
  unils decode --checkpoint runs/dualtalk --audio a.wav --audio2 b.wav --motion2 b.npz --out motion.npz
  unils decode --checkpoint runs/unitalker --audio a.wav --annotation motion_108 --out motion.npz"""
    parser.add_argument(
        "--checkpoint",
        metavar="PATH",
        help="dialogue (with --adapter a prior), DualTalk or UniTalker: workdir or file (default: our demo model)",
    )
    parser.add_argument(
        "--audio", required=True, metavar="A", help="the first person's track, any rate and format; or a folder or list"
    )
    parser.add_argument("--audio2", metavar="B", help="the second person's track")
    parser.add_argument("--out", metavar="M.npz", help="motion file to write; a folder for several conversations")
    parser.add_argument("--video", metavar="V.mp4", help="video to write")
    parser.add_argument(
        "--adapter", metavar="NAME", help="adapter of a prior: a .safetensors, or a name in its adapters/"
    )
    parser.add_argument("--audio_encoder", metavar="DIR", help="wav2vec2: transformers folder or hub name")
    parser.add_argument("--flame", metavar="FILE", help="generic_model.pkl of FLAME 2020, for the video")
    parser.add_argument("--style", metavar="M.npz", help="motion file whose middle 100 frames set the style")
    parser.add_argument("--prev", metavar="M.npz", help="motion file whose last 100 frames come before the first")
    parser.add_argument("--tau", type=float, default=1.0, help="temperature, 0 is greedy (default: %(default)s)")
    parser.add_argument("--cfg", type=float, default=1.5, help="guidance, up to 1 is off (default: %(default)s)")
    parser.add_argument("--top_p", type=float, default=0.97, help="nucleus per bit (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same motion (default: %(default)s)"
    )
    parser.add_argument("--people", type=int, choices=(1, 2), help="1 decodes the first person alone of two tracks")
    parser.add_argument(
        "--batch", type=int, metavar="N", help=f"conversations at a time (default: {BATCH} of several, else 1)"
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16"),
        help="of encoder and prior (default: %(default)s)",
    )
    decode_dualtalk.add_arguments(parser)
    decode_unitalker.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Decodes.

    Raises UserError for every mistake of the user, before anything is written; where some of
    several files are at fault, after the others are done.
    """
    from unils_jax.errors import UserError

    check_flags(args)
    if Path(args.audio).is_dir() or Path(args.audio).suffix == ".txt":
        if args.audio2 or args.video:
            raise UserError(
                "--audio2 and --video go with one conversation; a folder pairs NAME_speaker1 and NAME_speaker2, "
                "and `unils render` makes videos of motion files"
            )
        if Path(args.out).suffix == ".npz":
            raise UserError(f"--audio {args.audio} holds several conversations, --out {args.out} one; name a folder")
        run_many(args, find_recordings(Path(args.audio)))
    else:
        run_one(args)


def check_flags(args: argparse.Namespace) -> None:
    """Raises UserError for flags that do not fit each other or are out of range."""
    from unils_jax.errors import UserError

    if not args.out and not args.video:
        raise UserError("nothing to write: give --out M.npz, --video V.mp4 or both")
    if args.flame and not args.video:
        raise UserError("--flame is the head of the video; name one with --video V.mp4 or leave --flame away")
    if args.adapter and not args.checkpoint:
        raise UserError("--adapter is of a prior; name that with --checkpoint PATH")
    if not 0 <= args.seed < 1 << 32:
        raise UserError(f"--seed must be from 0 to {(1 << 32) - 1}, got {args.seed}")
    if args.batch is not None and args.batch < 1:
        raise UserError(f"--batch must be at least 1, got {args.batch}")


def run_one(args: argparse.Namespace) -> None:
    """One conversation: a motion file, a video, or both."""
    from unils_jax.audio import read_audio
    from unils_jax.errors import UserError
    from unils_jax.files import check_output
    from unils_jax.inference.conversations import Request, Sampling, decode_many
    from unils_jax.motion import save_motion

    for path, suffix in ((args.out, ".npz"), (args.video, ".mp4")):
        if path:
            check_output(path, suffix)
    sampling = Sampling(args.tau, args.cfg, args.top_p)
    tracks = [path for path in (args.audio, args.audio2) if path]
    audio = [read_audio(path) for path in tracks]
    people = args.people or len(audio)
    if people > len(audio):
        raise UserError("--people 2 needs both tracks; give the second one with --audio2")
    checkpoint = load_checkpoint(args)
    if checkpoint.config.stage == "unitalker":
        decode_unitalker.run(args, checkpoint, audio)
        return
    decode_unitalker.refuse_elsewhere(args)
    if checkpoint.config.stage == "dualtalk":
        decode_dualtalk.run(args, checkpoint, audio)
        return
    if args.motion2 or args.motion2_by:
        raise UserError("--motion2 and --motion2_by are of DualTalk, which sees its partner; leave them away")
    clips = read_clips(args, people, checkpoint.expression_basis)
    head = load_head(args.flame) if args.video else None
    started = time.perf_counter()
    program = make_program(args, checkpoint, people, args.batch or 1)
    ((_, motion),) = decode_many(program, [Request(*audio, **clips, sampling=sampling, seed=args.seed)])
    seconds = time.perf_counter() - started
    if args.out:
        source = source_of(args, checkpoint, tracks, program.slots)
        save_motion(args.out, motion, expression_basis=checkpoint.expression_basis, source=source)
    if args.video:
        write_video(args.video, motion, audio, head, checkpoint.expression_basis)
    written = [path for path in (args.out, args.video) if path]
    frames = motion.shape[1]
    print(f"{', '.join(written)}: {people} x {frames} frames, decoded in {seconds:.1f} s with compilation")


def run_many(args: argparse.Namespace, recordings: list[Recording]) -> None:
    """Several conversations: a motion file each.

    Those whose files cannot be read are named at the end.
    """
    from tqdm import tqdm

    from unils_jax.errors import UserError
    from unils_jax.files import check_output
    from unils_jax.inference.conversations import Sampling, decode_many
    from unils_jax.motion import save_motion

    check_output(Path(args.out) / f"{recordings[0].name}.npz", ".npz")
    sampling = Sampling(args.tau, args.cfg, args.top_p)
    checkpoint = load_checkpoint(args)
    if checkpoint.config.stage != "dialogue":
        raise UserError("DualTalk and UniTalker decode one conversation at a time; give one file, or two")
    decode_unitalker.refuse_elsewhere(args)
    groups = {people: [r for r in recordings if (args.people or len(r.tracks)) == people] for people in (1, 2)}
    if args.people == 2 and any(len(recording.tracks) == 1 for recording in recordings):
        raise UserError("--people 2 needs both tracks of every conversation; leave it away, or pair the files")
    basis = checkpoint.expression_basis
    clips = {people: read_clips(args, people, basis) for people, group in groups.items() if group}
    started, frames, failures = time.perf_counter(), 0, []
    progress = tqdm(total=len(recordings), desc="decode", disable=None, unit="conversation")
    for people in clips:
        tracks = {recording.name: [str(path) for path in recording.tracks] for recording in groups[people]}
        program = make_program(args, checkpoint, people, args.batch or BATCH)
        settings = {**clips[people], "sampling": sampling, "seed": args.seed}
        for request, motion in decode_many(program, readable(groups[people], settings, failures)):
            path = Path(args.out) / f"{request.name}.npz"
            source = source_of(args, checkpoint, tracks[request.name], program.slots)
            save_motion(path, motion, expression_basis=basis, source=source)
            frames += motion.shape[0] * motion.shape[1]
            log.info("%s: %d x %d frames", path, *motion.shape[:2])
            progress.update()
    progress.close()
    seconds, done = time.perf_counter() - started, len(recordings) - len(failures)
    print(f"{args.out}: {done} conversations, {frames} frames, decoded in {seconds:.1f} s with compilation")
    if failures:
        raise UserError(f"{len(failures)} of {len(recordings)} conversations failed: {'; '.join(failures)}")


def find_recordings(source: Path) -> list[Recording]:
    """The conversations of a folder or a list, by name.

    Raises UserError where there is none, where a line of the list is of another form, and where two
    have the same name.
    """
    from unils_jax.errors import UserError

    found = _in_folder(source) if source.is_dir() else _in_list(source)
    if not found:
        raise UserError(f"{source} names no audio file; give a folder or a list with some")
    count = Counter(recording.name for recording in found)
    if twice := sorted(name for name, number in count.items() if number > 1):
        raise UserError(f"{source}: several conversations are called {', '.join(twice)}; rename their files")
    return sorted(found, key=lambda recording: recording.name)


def _in_folder(folder: Path) -> list[Recording]:
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in AUDIO_SUFFIXES and not p.name.startswith("."))
    second = {p.stem.removesuffix(SPEAKERS[1]): p for p in files if p.stem.endswith(SPEAKERS[1])}
    found, paired = [], set()
    for path in files:
        name = path.stem.removesuffix(SPEAKERS[0])
        if path.stem.endswith(SPEAKERS[0]) and name in second:
            found.append(Recording(name, (path, second[name])))
            paired |= {path, second[name]}
    return found + [Recording(path.stem, (path,)) for path in files if path not in paired]


def _in_list(path: Path) -> list[Recording]:
    from unils_jax.errors import UserError

    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"list {path} cannot be read ({error}); give a text file") from None
    found = []
    for number, line in enumerate(lines, 1):
        words = [word.strip() for word in line.split("\t")]
        if not line.strip() or line.startswith("#"):
            continue
        if len(words) > 2 or not all(words):
            raise UserError(f"{path} line {number} must be one file, or two with a tab between them, got {line!r:.80}")
        tracks = tuple(path.parent / word for word in words)
        name = tracks[0].stem
        found.append(Recording(name.removesuffix(SPEAKERS[0]) if len(tracks) == 2 else name, tracks))
    return found


def readable(recordings: list[Recording], settings: dict[str, Any], failures: list[str]) -> Iterator[Any]:
    """The conversations whose files can be read; what is wrong with the others is added to `failures`."""
    from unils_jax.audio import read_audio
    from unils_jax.errors import UserError
    from unils_jax.inference.conversations import Request

    for recording in recordings:
        try:
            tracks = [read_audio(path) for path in recording.tracks]
        except UserError as error:
            log.warning("%s: %s", recording.name, error)
            failures.append(f"{recording.name}: {error}")
            continue
        yield Request(*tracks, **settings, name=recording.name)


def load_checkpoint(args: argparse.Namespace) -> Any:
    """The model that the flags name; where they name none the demo model of the package, and says so."""
    from dataclasses import replace

    from unils_jax.checkpoints.loading import load, pretrained

    path = args.checkpoint or pretrained()
    stages = ("dialogue", "dualtalk", "unitalker")
    checkpoint = load(path, audio_encoder=args.audio_encoder, stage=stages, adapter=args.adapter)
    if args.checkpoint:
        return checkpoint
    log.warning(DEMO_MODEL)
    return replace(checkpoint, source={**checkpoint.source, "checkpoint": "the demo model of unils_jax"})


def make_program(args: argparse.Namespace, checkpoint: Any, people: int, slots: int) -> Any:
    """The decode program of the flags, for conversations of so many people."""
    from unils_jax.inference import program as decode_program

    return decode_program.make_program(
        checkpoint.model, slots=slots, people=people, guided=args.cfg > 1, dtype=args.dtype
    )


def source_of(args: argparse.Namespace, checkpoint: Any, tracks: list[str], slots: int) -> dict[str, Any]:
    """What a motion file says of where it comes from."""
    from unils_jax import __version__

    flags = {name: getattr(args, name) for name in ("seed", "tau", "cfg", "top_p", "dtype")}
    return {**checkpoint.source, "audio": tracks, **flags, "batch": slots, "version": __version__}


def read_clips(args: argparse.Namespace, people: int, basis: str) -> dict[str, Any]:
    """The clips of --style and --prev for conversations of so many people."""
    return {name: read_clip(getattr(args, name), name, people, basis) for name in ("style", "prev")}


def read_clip(path: str | None, name: str, num_people: int, basis: str) -> Any:
    """The 100 frames of a motion file that style (its middle) or prev (its end) take, [1 or P, 100, 108], or None.

    Raises UserError where it is too short, of another number of people, or of another expression basis.
    """
    from unils_jax.errors import UserError
    from unils_jax.motion import WINDOW_FRAMES, load_motion

    if path is None:
        return None
    clip = load_motion(path)
    motion, (people, frames) = clip.motion, clip.motion.shape[:2]
    if clip.expression_basis != basis:
        raise UserError(
            f"--{name} {path} is of the {clip.expression_basis!r} expression basis, the checkpoint of {basis!r}; "
            "use motion that this checkpoint or its data made"
        )
    if frames < WINDOW_FRAMES:
        raise UserError(f"--{name} {path} has {frames} frames; at least {WINDOW_FRAMES} are needed")
    if people not in (1, num_people):
        raise UserError(f"--{name} {path} holds {people} people, the decode {num_people}; give one or as many")
    start = (frames - WINDOW_FRAMES) // 2 if name == "style" else frames - WINDOW_FRAMES
    return motion[:, start : start + WINDOW_FRAMES]


def load_head(flame: str | None) -> Any:
    """The FLAME head of the file, or the stand-in."""
    from unils_jax.face.flame_file import load_flame
    from unils_jax.face.standin import standin_asset

    return load_flame(flame) if flame else standin_asset()


def write_video(path: str, motion: Any, audio: list, head: Any, expression_basis: str) -> None:
    """Both people side by side, their audio left and right; motion is smoothed for display."""
    from unils_jax.motion import smooth
    from unils_jax.outputs.video import render_video

    render_video(path, smooth(motion), head, audio, expression_basis=expression_basis)
