"""`unils convert-motion`: motion to and from tables, glTF, blendshapes and the layouts of others."""

import argparse
import logging
from pathlib import Path
from typing import Any

from unils_jax.cli.people import add_head_arguments

log = logging.getLogger(__name__)

LAYOUTS = ("unils", "dualtalk", "artalk", "arkit")
SOURCES = ("unils", "dualtalk", "artalk")
BASES = ("flame", "standin")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sets the description, a working example and the flags."""
    parser.description = (
        "Takes motion elsewhere, and back. The suffix of --out chooses the kind of file, --layout the channels: our "
        "108 (unils: .csv, .npz, .glb), DualTalk's 56 (.npz, one file a person), ARTalk's 106 (.npz), ARKit's 52 "
        "blendshapes (.csv). Motion in the stand-in basis becomes ARKit's by name; with "
        "--arkit_basis any motion does, by least squares on the vertices of the head."
    )
    parser.epilog = """examples:
  unils convert-motion motion.npz --out motion.csv
  unils convert-motion motion.npz --out motion.glb
  unils convert-motion motion.npz --out arkit.csv --layout arkit
  unils convert-motion motion.npz --out talk.npz --layout dualtalk
  unils convert-motion talk_speaker1.npz talk_speaker2.npz --from dualtalk --out motion.npz"""
    parser.add_argument("motion", nargs="+", metavar="FILE", help="motion file (.npz) or table (.csv); see --from")
    parser.add_argument("--out", required=True, metavar="FILE", help=".csv, .npz or .glb to write")
    parser.add_argument("--layout", choices=LAYOUTS, default="unils", help="of what is written (default: %(default)s)")
    parser.add_argument(
        "--from", choices=SOURCES, default="unils", dest="source", help="layout of what is read (default: %(default)s)"
    )
    parser.add_argument(
        "--basis", choices=BASES, default="flame", help="of what --from dualtalk or artalk reads (default: %(default)s)"
    )
    parser.add_argument(
        "--arkit_basis", metavar="B.npz", help="names [K], shapes [K, V, 3] in metres, on the head's mesh"
    )
    add_head_arguments(parser, embed_in=".glb")


def run(args: argparse.Namespace) -> None:
    """Converts. Raises UserError for every mistake of the user, before anything is written."""
    from unils_jax.errors import UserError
    from unils_jax.files import check_output

    suffixes = {"unils": (".csv", ".npz", ".glb"), "dualtalk": (".npz",), "artalk": (".npz",), "arkit": (".csv",)}
    out = check_output(args.out, *suffixes[args.layout])
    if args.arkit_basis and args.layout != "arkit":
        raise UserError("--arkit_basis is what --layout arkit fits; add --layout arkit or leave it away")
    if args.flame and out.suffix != ".glb" and not args.arkit_basis:
        raise UserError("--flame is the head of a .glb or of --arkit_basis; leave it away here")
    motion, basis, origin = read_motion(args.motion, args.source, args.basis)
    if out.suffix == ".glb":
        written = write_glb(out, motion, basis, args.flame, args.embed_flame)
    elif args.layout == "arkit":
        written = write_arkit(out, motion, basis, args.arkit_basis, args.flame)
    else:
        written = write_channels(out, motion, basis, args.layout, origin)
    people, frames = motion.shape[:2]
    print(f"{written}: {people} x {frames} frames")


def read_motion(names: list[str], source: str, basis: str) -> tuple[Any, str, dict[str, Any]]:
    """Motion [P, T, 108], its basis and where it came from. Raises UserError, naming the file."""
    from unils_jax.errors import UserError
    from unils_jax.motion import load_motion
    from unils_jax.outputs.layouts import read_artalk, read_csv, read_dualtalk

    paths = [Path(name) for name in names]
    for path in paths:
        if not path.is_file():
            raise UserError(f"motion file {path} does not exist")
    if len(paths) > (2 if source == "dualtalk" else 1):
        raise UserError(
            f"{len(paths)} files were given; one is read, or with --from dualtalk one for each of two people"
        )
    origin = {"converted_from": [path.name for path in paths], "layout": source}
    if source == "dualtalk":
        return read_dualtalk(paths), basis, origin
    if source == "artalk":
        return read_artalk(paths[0]), basis, origin
    if paths[0].suffix == ".csv":
        return *read_csv(paths[0]), origin
    file = load_motion(paths[0])
    return file.motion, file.expression_basis, file.source


def write_channels(out: Path, motion: Any, basis: str, layout: str, origin: dict[str, Any]) -> str:
    """A motion file, a table, or another project's channels; returns what was written, in words."""
    import numpy as np

    from unils_jax.motion import EYES, save_motion
    from unils_jax.outputs.layouts import write_artalk, write_csv, write_dualtalk

    if layout != "unils":
        if basis != "flame":
            log.warning(
                "motion has the %s basis: in %s's layout the channels keep their numbers, not the meaning of FLAME's",
                basis,
                layout,
            )
        lost = {"eyes": motion[..., EYES]} | (
            {"expression 50 to 99": motion[..., 50:100]} if layout == "dualtalk" else {}
        )
        for name, values in lost.items():
            if np.any(values):
                log.warning("%s's layout has no room for %s, which is left out", layout, name)
    if layout == "dualtalk":
        return ", ".join(str(path) for path in write_dualtalk(out, motion))
    if layout == "artalk":
        write_artalk(out, motion)
    elif out.suffix == ".csv":
        write_csv(out, motion, basis)
    else:
        save_motion(out, motion, expression_basis=basis, source=origin)
    return str(out)


def write_glb(out: Path, motion: Any, basis: str, flame: str | None, embed_flame: bool) -> str:
    """glTF; returns what was written."""
    from unils_jax.errors import UserError
    from unils_jax.face.flame_file import load_flame
    from unils_jax.face.standin import standin_asset
    from unils_jax.outputs.gltf import write_glb

    if embed_flame and not flame:
        raise UserError("--embed_flame puts the geometry of --flame into the file; name the model with --flame")
    asset = load_flame(flame) if flame else standin_asset()
    if embed_flame:
        log.warning(
            "licence: the file contains FLAME's geometry; whoever holds or shares it is bound by FLAME's licence"
        )
    write_glb(out, motion, asset, expression_basis=basis, embed_flame=embed_flame)
    return str(out)


def write_arkit(out: Path, motion: Any, basis: str, arkit_basis: str | None, flame: str | None) -> str:
    """A table of the 52 coefficients; returns what was written and, for a fit, what remains."""
    from unils_jax.errors import UserError
    from unils_jax.face.flame_file import load_flame
    from unils_jax.face.standin import standin_asset
    from unils_jax.outputs import arkit
    from unils_jax.outputs.layouts import write_table

    if arkit_basis is None:
        if basis != "standin":
            raise UserError(
                f"motion has the {basis} basis, whose channels have no names: give --arkit_basis, 52 shapes on FLAME's "
                "mesh, and --flame"
            )
        found = arkit.by_name(motion)
    else:
        asset = load_flame(flame) if flame else standin_asset()
        if asset.name != basis:
            raise UserError(
                f"motion has the {basis} basis, the head is {asset.name}: "
                + ("give --flame" if basis == "flame" else "leave --flame away")
            )
        found = arkit.by_fit(motion, asset, *arkit.read_basis(arkit_basis, asset))
    write_table(out, found.coefficients, list(arkit.ARKIT_NAMES))
    if arkit_basis is None:
        return f"{out} (by name)"
    return f"{out} (fit: {found.residual_mm:.2f} mm of {found.motion_mm:.2f} mm remain)"
