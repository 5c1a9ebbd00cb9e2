"""`unils export`: a checkpoint as a file of the release's layout, or its adapter alone."""

import argparse
import logging

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sets the description, a working example and the flags."""
    parser.description = (
        "Writes weights that travel: a .pt in the release's layout (needs the extra torch), a .safetensors with its "
        "config as .json, or with --adapter what a dialogue learnt on top of its prior. A model card (.md) stands "
        "beside. What was written is read back and compared bit for bit."
    )
    parser.epilog = """example:
  unils export --checkpoint runs/demo/dialogue --out dialogue.safetensors
  unils export --checkpoint runs/demo/dialogue --adapter runs/demo/prior/adapters/cheerful.safetensors
  unils decode --checkpoint runs/demo/prior --adapter cheerful --audio a.wav --audio2 b.wav --out motion.npz"""
    parser.add_argument(
        "--checkpoint", required=True, metavar="PATH", help="workdir, step's folder, .pt or .safetensors"
    )
    parser.add_argument("--out", metavar="FILE", help="the .pt or .safetensors to write, LoRA merged")
    parser.add_argument("--adapter", metavar="FILE", help="the .safetensors to write the adapter alone to")
    parser.add_argument("--merge", metavar="NAME", help="an adapter, by name or file, to merge into the base for --out")
    parser.add_argument("--raw", action="store_true", help="the last step's weights instead of the averaged ones")
    parser.add_argument("--float16", action="store_true", help="round the weights for --out to half the bytes")
    parser.add_argument("--license", metavar="TEXT", help="the weights' licence, for the model card")


def run(args: argparse.Namespace) -> None:
    """Exports. Raises UserError for every mistake of the user, before anything is written."""
    from pathlib import Path

    from unils_jax.checkpoints.adapters import save_adapter
    from unils_jax.checkpoints.exporting import export
    from unils_jax.checkpoints.loading import load
    from unils_jax.checkpoints.model_card import model_card
    from unils_jax.errors import UserError
    from unils_jax.files import check_output

    if not args.out and not args.adapter:
        raise UserError("nothing to write: give --out FILE.pt, --out FILE.safetensors or --adapter FILE.safetensors")
    if args.merge and args.adapter:
        raise UserError("--merge makes a merged model for --out, --adapter writes what is not merged; give one of them")
    if args.float16 and not args.out:
        raise UserError("--float16 is of a model file; name one with --out")
    if args.out:
        check_output(args.out, ".pt", ".safetensors")
    if args.adapter:
        check_output(args.adapter, ".safetensors")
    checkpoint = load(args.checkpoint, adapter=args.merge, merge=False, raw=args.raw)
    if args.adapter:
        path = Path(args.adapter)
        parts = checkpoint.config, checkpoint.params, checkpoint.expression_basis
        adapter = save_adapter(path, *parts, name=path.stem)
        size = sum(value.size for value in adapter.params.values())
        print(f"{path}: adapter {path.stem!r} of base {adapter.info.base[:12]}, {size:,} values, read back and equal")
    if args.out:
        card = model_card(checkpoint.merged(), Path(args.out).name, license=args.license, raw=args.raw)
        exported = export(args.out, checkpoint, card, half=args.float16)
        for warning in exported.warnings:
            log.warning("warning: %s", warning)
        size = sum(array.size for array in exported.state.values())
        count = len(exported.state)
        print(
            f"{args.out}: {checkpoint.config.stage}, {count} tensors, {size:,} values, read back and equal bit for bit"
        )
