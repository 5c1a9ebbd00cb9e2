"""`unils render`: a motion file as a video."""

import argparse
import logging

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sets the description, a working example and the flags."""
    parser.description = (
        "Draws the people of a motion file side by side, on FLAME's head with --flame and on a stand-in without, and "
        "adds the audio: the first person is heard left, the second right, and who speaks is written below. Motion is "
        "smoothed a little, the truth is not."
    )
    parser.epilog = """example:
  unils render motion.npz --video video.mp4 --audio a.wav --audio2 b.wav"""
    parser.add_argument("motion", metavar="M.npz", help="motion file, as `unils decode --out` writes it")
    parser.add_argument("--video", required=True, metavar="V.mp4", help="video to write")
    parser.add_argument("--audio", metavar="A", help="the first person's track, any rate and format")
    parser.add_argument("--audio2", metavar="B", help="the second person's track")
    parser.add_argument("--flame", metavar="FILE", help="generic_model.pkl of FLAME 2020 (default: the stand-in head)")
    parser.add_argument("--truth", metavar="T.npz", help="motion file of what the people really did, to show beside it")
    parser.add_argument(
        "--size",
        default="512",
        metavar="PIXELS",
        help="side of each person's square, or 1080p: a picture of 1920 x 1080 (default: %(default)s)",
    )
    parser.add_argument("--no_captions", action="store_true", help="leave away who is who, and who speaks")


def run(args: argparse.Namespace) -> None:
    """Renders. Raises UserError for every mistake of the user, before anything is written."""
    import numpy as np

    from unils_jax.audio import read_audio, speaking_frames
    from unils_jax.errors import UserError
    from unils_jax.files import check_output
    from unils_jax.models.flame import load_flame
    from unils_jax.models.standin import standin_asset
    from unils_jax.motion import load_motion, smooth
    from unils_jax.render import FULL_HD, render_video

    check_output(args.video, ".mp4")
    if args.audio2 and not args.audio:
        raise UserError("--audio2 is the second person's track; give the first with --audio")
    if args.size != "1080p" and not args.size.isdecimal():
        raise UserError(f"--size must be a number of pixels such as 512, or 1080p, got {args.size!r}")
    file = load_motion(args.motion)
    truth = load_motion(args.truth) if args.truth else None
    if truth is not None and truth.expression_basis != file.expression_basis:
        raise UserError(
            f"--truth {args.truth} is of the {truth.expression_basis!r} expression basis, the motion of "
            f"{file.expression_basis!r}; give motion of the same basis"
        )
    audio = [read_audio(path) for path in (args.audio, args.audio2) if path] or None
    asset = load_flame(args.flame) if args.flame else standin_asset()
    people, frames = file.motion.shape[:2]
    speaking = None
    if audio is not None and len(audio) == people and not args.no_captions:
        speaking = np.zeros((people, frames), bool)
        heard = speaking_frames(audio)[:, :frames]
        speaking[:, : heard.shape[1]] = heard
    summary = render_video(
        args.video,
        smooth(file.motion),
        asset,
        audio,
        expression_basis=file.expression_basis,
        size=FULL_HD if args.size == "1080p" else int(args.size),
        captions=[""] * people if args.no_captions else None,
        speaking=speaking,
        truth=None if truth is None else truth.motion,
    )
    print(
        f"{args.video}: {people} head(s), {summary.num_frames / file.fps:.1f} s, "
        f"{summary.frames_per_s:.1f} frames/s ({summary.graphics})"
    )
