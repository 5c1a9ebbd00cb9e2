"""Draws docs/decoded.png: ten moments of a held-out conversation as the packaged model decodes it.

python docs/decoded.py [STORE]

STORE is of `unils data synth --voices bank`; its first test conversation is drawn.
"""

import sys
from pathlib import Path

from PIL import Image

import unils_jax as unils
from data_pipelines.store.reader import Store
from data_pipelines.windows import whole_sequence
from unils_jax.benchmarks.demo import contact_sheet
from unils_jax.checkpoints.loading import pretrained


def main(store: str = "runs/pretrained/data") -> None:
    """Writes the picture and says what it shows."""
    checkpoint = unils.load(pretrained())
    item = whole_sequence(Store(store).read("test", 0))
    motion = unils.decode(checkpoint, *item["audio"])
    shown = unils.finish(motion, checkpoint.expression_basis).motion
    sheet = contact_sheet(shown, checkpoint.expression_basis, size=200)
    Image.fromarray(sheet).save(Path(__file__).with_suffix(".png"), optimize=True)
    speaking = item["speech_mask"]
    for part in range(10):
        frame = shown.shape[1] * (2 * part + 1) // 20
        print(f"{frame / 25:.1f} s", *("speaks" if mask[frame] else "listens" for mask in speaking))


if __name__ == "__main__":
    main(*sys.argv[1:])
