"""What `unils decode` does with a UniTalker checkpoint: one annotation's numbers, of each person from the own audio.

`motion_108` becomes a motion file like any other. The other annotations become an .npz of `vertices [P, T, V, 3]`,
`weights [P, T, n]` or `parameters [P, T, D]`, with `kind`, `fps`, `units` and `source` (JSON) as text and number.
"""

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

FLAGS = ("annotation", "subject", "template", "pca", "fps")
OTHERS = ("style", "prev", "adapter", "batch", "motion2", "motion2_by")  # flags of the other models
# Of the published annotations as they were trained; see the table of sets in UniTalker's release.
UNITS = {"BIWI_23370_vertices": "0.2 of BIWI's", "FLAME_5023_vertices": "m", "meshtalk_6172_vertices": "m"}
BIWI = "BIWI_23370_vertices"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say which annotation of whom is predicted."""
    talker = parser.add_argument_group("UniTalker", "which annotation, and who it is")
    talker.add_argument(
        "--annotation", metavar="NAME", help="one that it was trained on (default: motion_108 or its only)"
    )
    talker.add_argument("--subject", type=int, metavar="N", help="row of its identity table (default: nobody's)")
    talker.add_argument(
        "--template", metavar="F.npy", help="the neutral face [D], scaled as in training (default: zero)"
    )
    talker.add_argument("--pca", metavar="DIR", help="set with the pca.npz that a published checkpoint leaves out")
    talker.add_argument(
        "--fps", type=int, choices=(25, 30), help="of the annotation (default: 25 of motion_108 and BIWI, else 30)"
    )


def refuse_elsewhere(args: argparse.Namespace) -> None:
    """Raises UserError where another model is given flags of UniTalker."""
    from unils_jax.errors import UserError

    given = [f"--{name}" for name in FLAGS if getattr(args, name) is not None]
    if given:
        raise UserError(f"{', '.join(given)} is of UniTalker, the checkpoint is another model; leave it away")


def run(args: argparse.Namespace, checkpoint: Any, audio: list) -> None:
    """Decodes one or both people.

    Raises UserError for flags that UniTalker, or the annotation, has no use for.
    """
    import numpy as np

    from unils_jax import __version__
    from unils_jax.cli.decode import load_head, write_video
    from unils_jax.motion import MOTION_KIND, save_motion
    from unils_jax.systems.unitalker.inference import speak

    kind = check(args, checkpoint)
    checkpoint = complete(args, checkpoint, kind)
    dim = checkpoint.config.dims[0]
    template = read_template(args, kind, dim)
    fps = args.fps or (25 if kind in (MOTION_KIND, BIWI) else 30)
    head = load_head(args.flame) if args.video else None
    people = args.people or len(audio)
    length = max(map(len, audio))
    tracks = [np.pad(track, (0, length - len(track))) for track in audio[:people]]
    started = time.perf_counter()
    numbers = np.stack(
        [speak(checkpoint.model, t, kind, fps, template, args.subject, dtype=args.dtype) for t in tracks]
    )
    seconds = time.perf_counter() - started
    source = {**checkpoint.source, "audio": [path for path in (args.audio, args.audio2) if path], "annotation": kind}
    source |= {"subject": args.subject, "template": args.template, "dtype": args.dtype, "version": __version__}
    if args.out and kind == MOTION_KIND:
        save_motion(args.out, numbers, expression_basis=checkpoint.expression_basis, source=source)
    elif args.out:
        save_numbers(args.out, numbers, kind, fps, source)
    if args.video:
        write_video(args.video, numbers, tracks, head, checkpoint.expression_basis)
    written = ", ".join(path for path in (args.out, args.video) if path)
    print(f"{written}: {people} x {numbers.shape[1]} frames of {kind}, in {seconds:.1f} s with compilation")


def check(args: argparse.Namespace, checkpoint: Any) -> str:
    """The annotation's name. Raises one UserError with every flag that does not fit."""
    from unils_jax.errors import UserError
    from unils_jax.motion import MOTION_KIND

    talker, problems = checkpoint.config, []
    others = [f"--{name}" for name in OTHERS if getattr(args, name) is not None]
    if others:
        problems.append(f"{', '.join(others)} is of other models, {args.checkpoint} is a UniTalker; leave it away")
    kind = args.annotation or (MOTION_KIND if MOTION_KIND in talker.annotations else talker.annotations[0])
    if kind not in talker.annotations or (not args.annotation and kind != MOTION_KIND and len(talker.annotations) > 1):
        got = "nothing" if args.annotation is None else repr(args.annotation)
        problems.append(f"--annotation must be one of {', '.join(talker.annotations)}, got {got}")
    if args.subject is not None and not 0 <= args.subject < talker.num_identities:
        problems.append(f"--subject must be from 0 to {talker.num_identities - 1}, got {args.subject}")
    if kind == MOTION_KIND and (args.template or args.pca or args.fps == 30):
        problems.append(f"{kind} has 25 fps, no template and no PCA; leave --template, --pca and --fps away")
    elif kind != MOTION_KIND and args.video:
        problems.append(f"--video shows {MOTION_KIND} alone, not {kind}; write its numbers with --out")
    if problems:
        raise UserError("; ".join(problems))
    return kind


def complete(args: argparse.Namespace, checkpoint: Any, kind: str) -> Any:
    """The checkpoint with the head of this kind alone, and the set's PCA where it lacks that."""
    from dataclasses import replace

    from data_pipelines.sources.unitalker import read_pca
    from unils_jax.errors import UserError
    from unils_jax.systems.unitalker.heads import with_pca, without_pca

    checkpoint = checkpoint.select(kind)
    lacking = without_pca(checkpoint.config, checkpoint.params)
    if lacking and not args.pca:
        raise UserError(
            f"{args.checkpoint} leaves out the PCA of {kind}; give its set, which has pca.npz, with --pca DIR"
        )
    if args.pca and not lacking:
        raise UserError(f"{args.checkpoint} needs no PCA for {kind} or has its own; leave --pca away")
    bases = {kind: read_pca(Path(args.pca)) for kind in lacking}
    config, params = with_pca(checkpoint.config, checkpoint.params, bases)
    return replace(checkpoint, config=config, params=params)


def read_template(args: argparse.Namespace, kind: str, dim: int) -> Any:
    """The neutral face [D]; without one zero, and of vertices that is said."""
    import numpy as np

    from unils_jax.errors import UserError
    from unils_jax.npz import read_npy_file
    from unils_jax.systems.unitalker.annotations import VERTEX_LISTS

    if args.template is None:
        if kind in VERTEX_LISTS:
            log.warning("no --template: the vertices are displacements from a neutral face")
        return np.zeros(dim, np.float32)
    array = read_npy_file(args.template)
    if array.size != dim or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        found = f"{array.dtype} {list(array.shape)}"
        raise UserError(f"--template {args.template} must hold {dim} finite numbers, as {kind} has, got {found}")
    return array.reshape(-1).astype(np.float32)


def save_numbers(path: str, numbers: Any, kind: str, fps: int, source: dict[str, Any]) -> None:
    """Writes an annotation [P, T, D] that is no motion of ours; see the module. Atomic."""
    import numpy as np

    from unils_jax.files import atomic_output
    from unils_jax.systems.unitalker.annotations import BLENDSHAPES, FLAME_PARAMETERS, VERTEX_LISTS

    name, units = "numbers", "as trained"
    if kind in VERTEX_LISTS:
        name, units = "vertices", UNITS[kind]
        numbers = numbers.reshape(*numbers.shape[:2], -1, 3)
    elif kind in BLENDSHAPES:
        name, units = "weights", "of blendshapes, 1 is full"
    elif kind == FLAME_PARAMETERS:
        name, units = "parameters", "coefficients, then radians (jaw 3)"
    text = {"kind": kind, "units": units, "source": json.dumps(source, sort_keys=True)}
    with atomic_output(path) as partial, open(partial, "wb") as file:
        np.savez(file, **{name: numbers}, fps=np.float64(fps), **{key: np.array(value) for key, value in text.items()})
