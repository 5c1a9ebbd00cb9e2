"""`unils view`: a motion file as one HTML page."""

import argparse
import logging

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sets the description, a working example and the flags."""
    parser.description = (
        "Makes one HTML file that any browser opens offline: the people of a motion file in 3D, their voices "
        "in sync, and curves of voice, jaw, lids and head over time. Space plays; `keys` on the page tells the rest."
    )
    parser.epilog = """example:
  unils view motion.npz --audio a.wav --audio2 b.wav --out page.html"""
    parser.add_argument("motion", metavar="M.npz", help="motion file, as `unils decode --out` writes it")
    parser.add_argument("--out", required=True, metavar="PAGE.html", help="page to write")
    parser.add_argument("--audio", metavar="A", help="the first person's track, any rate and format")
    parser.add_argument("--audio2", metavar="B", help="the second person's track")
    parser.add_argument("--truth", metavar="T.npz", help="motion file of what the people really did, to compare with")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="of the people (default: person 1, person 2)")
    parser.add_argument("--title", help="of the page (default: the motion file's name)")
    parser.add_argument("--flame", metavar="FILE", help="generic_model.pkl of FLAME 2020 (default: the stand-in head)")
    parser.add_argument(
        "--embed_flame",
        action="store_true",
        help="put FLAME's geometry into the page, which is then under FLAME's licence; with --flame",
    )


def run(args: argparse.Namespace) -> None:
    """Makes the page. Raises UserError for every mistake of the user, before anything is written."""
    from pathlib import Path

    from unils_jax.audio import read_audio
    from unils_jax.errors import UserError
    from unils_jax.files import check_output
    from unils_jax.models.flame import load_flame
    from unils_jax.models.standin import standin_asset
    from unils_jax.motion import load_motion
    from unils_jax.viewer.page import FLAME_STAMP, make_page, page_script

    check_output(args.out, ".html")
    page_script()
    if args.audio2 and not args.audio:
        raise UserError("--audio2 is the second person's track; give the first with --audio")
    if args.embed_flame and not args.flame:
        raise UserError("--embed_flame puts the geometry of --flame into the page; name the file with --flame")
    file = load_motion(args.motion)
    truth = load_motion(args.truth) if args.truth else None
    if truth is not None and truth.expression_basis != file.expression_basis:
        raise UserError(
            f"--truth {args.truth} is of the {truth.expression_basis!r} expression basis, the motion of "
            f"{file.expression_basis!r}; give motion of the same basis"
        )
    audio = [read_audio(path) for path in (args.audio, args.audio2) if path] or None
    asset = load_flame(args.flame) if args.flame else standin_asset()
    if args.embed_flame:
        log.warning("licence: %s", FLAME_STAMP)
    summary = make_page(
        args.out,
        file.motion,
        asset,
        audio,
        expression_basis=file.expression_basis,
        truth=None if truth is None else truth.motion,
        names=args.names,
        title=args.title or Path(args.motion).stem,
        embed_flame=args.embed_flame,
    )
    people, frames = file.motion.shape[:2]
    print(
        f"{args.out}: {people} x {frames} frames, {summary.total / 1e6:.1f} MB (head and motion "
        f"{summary.motion / 1e6:.2f}, audio {summary.audio / 1e6:.2f}, script {summary.script / 1e6:.2f})"
    )
