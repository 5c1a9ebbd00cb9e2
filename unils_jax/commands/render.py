"""`unils render`: a motion file as a video."""

import argparse
import logging

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sets the description, a working example and the flags."""
    parser.description = (
        "Draws the people of a motion file side by side, on FLAME's head with --flame and on a stand-in without, and "
        "adds the audio: the first person is heard left, the second right. Motion is smoothed a little."
    )
    parser.epilog = """example:
  unils render motion.npz --video video.mp4 --audio a.wav --audio2 b.wav"""
    parser.add_argument("motion", metavar="M.npz", help="motion file, as `unils decode --out` writes it")
    parser.add_argument("--video", required=True, metavar="V.mp4", help="video to write")
    parser.add_argument("--audio", metavar="A", help="the first person's track, any rate and format")
    parser.add_argument("--audio2", metavar="B", help="the second person's track")
    parser.add_argument("--flame", metavar="FILE", help="generic_model.pkl of FLAME 2020 (default: the stand-in head)")
    parser.add_argument("--size", type=int, default=512, metavar="PIXELS", help="of a tile (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Renders. Raises UserError for every mistake of the user, before anything is written."""
    from unils_jax.audio import read_audio
    from unils_jax.errors import UserError
    from unils_jax.files import check_output
    from unils_jax.models.flame import load_flame
    from unils_jax.models.standin import standin_asset
    from unils_jax.motion import load_motion, smooth
    from unils_jax.render import render_video

    check_output(args.video, ".mp4")
    if args.audio2 and not args.audio:
        raise UserError("--audio2 is the second person's track; give the first with --audio")
    motion = load_motion(args.motion)
    audio = [read_audio(path) for path in (args.audio, args.audio2) if path] or None
    asset = load_flame(args.flame) if args.flame else standin_asset()
    summary = render_video(
        args.video, smooth(motion.motion), asset, audio, expression_basis=motion.expression_basis, size=args.size
    )
    print(
        f"{args.video}: {motion.motion.shape[0]} head(s), {summary.num_frames / motion.fps:.1f} s, "
        f"{summary.frames_per_s:.1f} frames/s ({summary.backend})"
    )
