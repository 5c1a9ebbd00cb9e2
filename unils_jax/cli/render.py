"""`unils render`: a motion file as a video."""

import argparse

from unils_jax.cli.people import add_people_arguments, load_people


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sets the description, a working example and the flags."""
    parser.description = (
        "Draws the people of a motion file side by side, on FLAME's head with --flame and on a stand-in without, and "
        "adds the audio: the first person is heard left, the second right, and who speaks is written below. Motion is "
        "smoothed a little, the truth is not."
    )
    parser.epilog = """example:
  unils render motion.npz --video video.mp4 --audio a.wav --audio2 b.wav"""
    add_people_arguments(parser)
    parser.add_argument("--video", required=True, metavar="V.mp4", help="video to write")
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

    from unils_jax.audio import speaking_frames
    from unils_jax.errors import UserError
    from unils_jax.files import check_output
    from unils_jax.motion import smooth
    from unils_jax.outputs.video import FULL_HD, render_video

    check_output(args.video, ".mp4")
    if args.size != "1080p" and not args.size.isdecimal():
        raise UserError(f"--size must be a number of pixels such as 512, or 1080p, got {args.size!r}")
    given = load_people(args)
    file, audio = given.file, given.audio
    people, frames = file.motion.shape[:2]
    speaking = None
    if audio is not None and len(audio) == people and not args.no_captions:
        speaking = np.zeros((people, frames), bool)
        heard = speaking_frames(audio)[:, :frames]
        speaking[:, : heard.shape[1]] = heard
    summary = render_video(
        args.video,
        smooth(file.motion),
        given.asset,
        audio,
        expression_basis=file.expression_basis,
        size=FULL_HD if args.size == "1080p" else int(args.size),
        captions=[""] * people if args.no_captions else None,
        speaking=speaking,
        truth=given.truth,
    )
    print(
        f"{args.video}: {people} head(s), {summary.num_frames / file.fps:.1f} s, "
        f"{summary.frames_per_s:.1f} frames/s ({summary.graphics})"
    )
