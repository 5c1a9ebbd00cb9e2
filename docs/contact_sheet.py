"""Draws docs/contact_sheet.png: five moments of a synthetic conversation, the two people one above the other.

python docs/contact_sheet.py
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.synthetic.conversation import SynthConfig
from data_pipelines.synthetic.dataset import make_conversation
from unils_jax.face.standin import standin_asset
from unils_jax.motion import EYES, HEAD, JAW, STANDIN_SHAPES, center_head, smooth
from unils_jax.outputs.video import render_frame

SIZE, SEED = 384, 11
NAMES = list(STANDIN_SHAPES)


def shape(motion: np.ndarray, *names: str) -> np.ndarray:
    """The mean of named shapes over time, 1 is fully expressed; a person's own rest is taken off."""
    values = np.mean([motion[:, NAMES.index(name)] / STANDIN_SHAPES[name] for name in names], axis=0)
    return values - np.median(values)


def moments(motion: np.ndarray, raw: np.ndarray, speaking: np.ndarray, other: np.ndarray) -> dict[str, int]:
    """A frame for each caption: where what it says is most, and the rest least."""
    turned = np.abs(motion[:, HEAD]).sum(axis=1)
    away = np.abs(motion[:, EYES][:, 1]) + np.abs(motion[:, HEAD][:, 1]) - 2 * np.abs(motion[:, EYES][:, 0])
    smile, lids = shape(motion, "smile_left", "smile_right"), shape(raw, "blink_left", "blink_right")
    jaw = motion[:, JAW][:, 0]
    calm = 2 * turned + 12 * np.abs(lids)
    return {
        "speaking": int(np.argmin(20 * np.abs(jaw - 0.13) + calm + np.where(speaking, 0, 9))),
        "listening": int(np.argmax(-calm - np.abs(smile) - 8 * jaw - np.where(other & ~speaking, 0, 9))),
        "blink": int(np.argmax(2 * lids - turned - np.where(speaking, 9, 0))),
        "smile": int(np.argmax(4 * smile - calm - 4 * jaw - np.where(speaking, 9, 0))),
        "looking away": int(np.argmax(away - 6 * np.abs(lids) - 4 * jaw - np.abs(smile))),
    }


def main() -> None:
    """Writes the picture."""
    record = make_conversation(SynthConfig(minutes=2.0), SEED, 0)
    raw = center_head(record.motion).astype(np.float32)
    motion = smooth(raw)
    rows = []
    for person in range(2):
        chosen = moments(motion[person], raw[person], record.speech_mask[person], record.speech_mask[1 - person])
        tiles = []
        for caption, frame in chosen.items():
            shown = np.stack([raw[p, frame] if caption == "blink" else motion[p, frame] for p in range(2)])
            both = render_frame(shown, standin_asset(), expression_basis="standin", size=SIZE)
            tile = Image.fromarray(both[:, person * SIZE : (person + 1) * SIZE])
            font = ImageFont.load_default(SIZE // 20)
            ImageDraw.Draw(tile).text((SIZE / 2, SIZE * 0.97), caption, fill=(235, 235, 235), font=font, anchor="ms")
            tiles.append(np.asarray(tile))
        rows.append(np.concatenate(tiles, axis=1))
    Image.fromarray(np.concatenate(rows)).save(Path(__file__).with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main()
