"""`unils data ...`: makes training data, brings other people's into a store, checks it."""

import argparse
from collections.abc import Callable

from unils_jax.cli.data.checks import (
    add_imbalance_arguments,
    add_pca_arguments,
    add_verify_arguments,
    run_imbalance,
    run_pca,
    run_stats,
    run_verify,
)
from unils_jax.cli.data.convert import add_convert_arguments, run_convert
from unils_jax.cli.data.encode import add_encode_arguments, run_encode
from unils_jax.cli.data.synth import SynthRequest, add_synth_arguments, chosen_bank, run_synth, synth

__all__ = ["SynthRequest", "add_arguments", "chosen_bank", "synth"]

EXAMPLES = {
    "synth": "unils data synth --out data/synthetic --conversations 60 --minutes 2 --seed 0\n"
    "  unils data synth --out data/alone --unpaired 200 --minutes 0.5\n"
    "  unils data synth --out data/plain --voices builtin",
    "convert": "unils data convert --from release --source seamless/lmdb --index seamless.json --out data/seamless\n"
    "  unils data convert --from files --source recordings --out data/own --workers 8\n"
    "  unils data convert --from tracks --source tracked --layout smirk --fps 29.97 --out data/tracked\n"
    "  unils data convert --from seamless --source seamless_interaction --motion_source tracked --out data/seamless\n"
    "  srun unils data convert ... --shard $((SLURM_PROCID + 1))/$SLURM_NTASKS",
    "verify": "unils data verify data/seamless",
    "pca": "unils data pca D2_meshtalk=0.001 --components 647 --batch_size 1095",
    "stats": "unils data stats data/seamless data/talk --out stats.json",
    "imbalance": "unils data imbalance data/seamless --out imbalance.json",
    "encode": "unils data encode --store data/seamless --out data/seamless-features\n"
    "  unils data encode --store data/synthetic --config smoke/dialogue --audio_encoder runs/ear --out data/features",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-commands of `unils data`, each with a working example."""
    parser.description = "Make training data, convert it, check it. See `unils data convert --help` and so on."
    parser.epilog = "\n  ".join(["examples:", *EXAMPLES.values()])
    kinds = parser.add_subparsers(
        dest="data_command", metavar="{synth,convert,verify,stats,pca,imbalance,encode}", required=True
    )

    def kind(
        name: str, run: Callable[[argparse.Namespace], None], summary: str, description: str
    ) -> argparse.ArgumentParser:
        added = kinds.add_parser(
            name,
            help=summary,
            description=description,
            epilog=f"example:\n  {EXAMPLES[name]}",
        )
        added.set_defaults(run=run)
        return added

    add_synth_arguments(
        kind(
            "synth",
            run_synth,
            "a deterministic synthetic dialogue set",
            "Makes a store of synthetic conversations: motion, two audio tracks, speech masks, events. "
            "The same flags give the same data; about 80/10/10 of the conversations are train, val and test, and "
            "nobody is in two of them. With --unpaired: single persons without audio, for codec and prior.",
        )
    )
    add_convert_arguments(
        kind(
            "convert",
            run_convert,
            "any known source into a store; resumable",
            "Converts the published release (LMDB and JSON index), a published folder, or one of .wav and motion\n"
            ".npz into a store. Run again after any interruption it goes on and ends in the same bytes. What cannot\n"
            "be used is left out and listed, with its hours, in conversion.json and CONVERSION.md of the store.",
        )
    )
    add_verify_arguments(
        kind(
            "verify",
            run_verify,
            "checks a store",
            "Checks checksums, schema, values, lengths, ranges, speech masks, and that mouths move with voices.\n"
            "Writes a report (JSON, Markdown, HTML with histograms). Exit status 2 where there is a problem.",
        )
    )
    stats = kind(
        "stats",
        run_stats,
        "channel statistics of one store or of several together",
        "Mean and standard deviation of the 108 channels over the train splits, merged exactly.",
    )
    stats.add_argument("stores", nargs="+", metavar="DIR", help="the stores")
    stats.add_argument("--out", metavar="FILE.json", help="all 108 channels as JSON")
    add_pca_arguments(
        kind(
            "pca",
            run_pca,
            "the PCA of a set of large annotations",
            "Fits scikit-learn's incremental PCA (extra `pca`) to the training frames of a set of annotations,\n"
            "less their subjects' templates, and writes it into the set, where training and evaluation find it.",
        )
    )

    add_imbalance_arguments(
        kind(
            "imbalance",
            run_imbalance,
            "how much of the motion each audio explains",
            "Predicts expression, jaw, head and eyes from own and other audio, while speaking and while listening,\n"
            "by a ridge regression and a small network (scikit-learn, extra `analysis`), tested on unseen people.\n"
            "Writes a report (JSON, Markdown, HTML) with the t-SNE picture of audio and motion.",
        )
    )
    add_encode_arguments(
        kind(
            "encode",
            run_encode,
            "the features of a store's audio, for training without its encoder",
            "Runs the frozen audio encoder of a dialogue's config over train and val once, and keeps what it makes.\n"
            "Training with --config.audio_features=DIR skips the encoder. What it costs in exactness is said there.",
        )
    )
