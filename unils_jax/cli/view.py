"""`unils view`: a motion file as one HTML page."""

import argparse
import logging

from unils_jax.cli.people import add_people_arguments, load_people

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sets the description, a working example and the flags."""
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


def run(args: argparse.Namespace) -> None:
    """Makes the page. Raises UserError for every mistake of the user, before anything is written."""
    from pathlib import Path

    from unils_jax.errors import UserError
    from unils_jax.files import check_output
    from unils_jax.outputs.page import FLAME_STAMP, make_page, page_script

    check_output(args.out, ".html")
    page_script()
    if args.embed_flame and not args.flame:
        raise UserError("--embed_flame puts the geometry of --flame into the page; name the file with --flame")
    people = load_people(args)
    file = people.file
    if args.embed_flame:
        log.warning("licence: %s", FLAME_STAMP)
    summary = make_page(
        args.out,
        file.motion,
        people.asset,
        people.audio,
        expression_basis=file.expression_basis,
        truth=people.truth,
        names=args.names,
        title=args.title or Path(args.motion).stem,
        embed_flame=args.embed_flame,
    )
    num_people, frames = file.motion.shape[:2]
    print(
        f"{args.out}: {num_people} x {frames} frames, {summary.total / 1e6:.1f} MB (head and motion "
        f"{summary.motion / 1e6:.2f}, audio {summary.audio / 1e6:.2f}, script {summary.script / 1e6:.2f})"
    )
