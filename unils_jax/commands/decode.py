"""`unils decode`: audio files in, a motion file and a video out."""

import argparse
import logging
import time
from typing import Any

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sets the description, a working example and the flags."""
    parser.description = (
        "Motion of one person, or with --audio2 of both, from the audio of a conversation. Without --audio2 the other "
        "track is silence."
    )
    parser.epilog = """example:
  unils decode --checkpoint runs/demo/dialogue --audio a.wav --audio2 b.wav --out motion.npz --video video.mp4"""
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="PATH",
        help="dialogue (or, with --adapter, prior): workdir, .pt, .safetensors",
    )
    parser.add_argument("--audio", required=True, metavar="A", help="the first person's track, any rate and format")
    parser.add_argument("--audio2", metavar="B", help="the second person's track")
    parser.add_argument("--out", metavar="M.npz", help="motion file to write")
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


def run(args: argparse.Namespace) -> None:
    """Decodes. Raises UserError for every mistake of the user, before anything is written."""
    from unils_jax import __version__
    from unils_jax.audio import read_audio
    from unils_jax.decode import Sampling, decode
    from unils_jax.errors import UserError
    from unils_jax.files import check_output
    from unils_jax.load import load
    from unils_jax.motion import save_motion

    if not args.out and not args.video:
        raise UserError("nothing to write: give --out M.npz, --video V.mp4 or both")
    if args.flame and not args.video:
        raise UserError("--flame is the head of the video; name one with --video V.mp4 or leave --flame away")
    if not 0 <= args.seed < 1 << 32:
        raise UserError(f"--seed must be from 0 to {(1 << 32) - 1}, got {args.seed}")
    for path, suffix in ((args.out, ".npz"), (args.video, ".mp4")):
        if path:
            check_output(path, suffix)
    sampling = Sampling(args.tau, args.cfg, args.top_p)
    audio = [read_audio(path) for path in (args.audio, args.audio2) if path]
    checkpoint = load(args.checkpoint, audio_encoder=args.audio_encoder, stage="dialogue", adapter=args.adapter)
    basis = checkpoint.expression_basis
    clips = {name: read_clip(getattr(args, name), name, len(audio), basis) for name in ("style", "prev")}
    head = load_head(args.flame) if args.video else None
    started = time.perf_counter()
    motion = decode(checkpoint.model, *audio, **clips, sampling=sampling, seed=args.seed)
    seconds = time.perf_counter() - started
    source = {
        **checkpoint.source,
        "audio": [path for path in (args.audio, args.audio2) if path],
        "seed": args.seed,
        "tau": args.tau,
        "cfg": args.cfg,
        "top_p": args.top_p,
        "version": __version__,
    }
    written = [path for path in (args.out, args.video) if path]
    if args.out:
        save_motion(args.out, motion, expression_basis=basis, source=source)
    if args.video:
        write_video(args.video, motion, audio, head, basis)
    people, frames = motion.shape[:2]
    print(f"{', '.join(written)}: {people} x {frames} frames, decoded in {seconds:.1f} s with compilation")


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
    from unils_jax.models.flame import load_flame
    from unils_jax.models.standin import standin_asset

    return load_flame(flame) if flame else standin_asset()


def write_video(path: str, motion: Any, audio: list, head: Any, expression_basis: str) -> None:
    """Both people side by side, their audio left and right; motion is smoothed for display."""
    from unils_jax.motion import smooth
    from unils_jax.render import render_video

    render_video(path, smooth(motion), head, audio, expression_basis=expression_basis)
