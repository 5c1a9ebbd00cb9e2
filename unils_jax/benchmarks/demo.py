"""What the demo trains, the proof that each stage has learnt, and the demo's pictures."""

import json
import logging
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float, UInt8

from data_pipelines.loader import Batch, inclusive, make_loader
from data_pipelines.store.reader import Store
from data_pipelines.windows import RELEASE_WINDOW, cut_window, whole_sequence
from unils_jax.audio import frame_loudness
from unils_jax.checkpoints.loading import load
from unils_jax.config import load_config
from unils_jax.evaluation.figures.speech import jaw_loudness
from unils_jax.evaluation.likelihood import (
    articulator_errors,
    codec_error,
    marginal_cross_entropy,
    mean_over,
    window_cross_entropy,
    with_other_audio,
)
from unils_jax.evaluation.statistics import bootstrap_interval
from unils_jax.face.standin import standin_asset
from unils_jax.files import atomic_output
from unils_jax.inference.conversations import decode
from unils_jax.inference.finishing import finish_file
from unils_jax.models.unils import UniLS
from unils_jax.motion import Window, load_motion
from unils_jax.outputs.video import render_frame
from unils_jax.training import run

log = logging.getLogger(__name__)

STAGES = ("ear", "codec", "prior", "dialogue")
PARENTS = {"prior": "codec", "dialogue": "prior"}
# Steps of each stage, fewer than its smoke config says: eight minutes on two cores.
STEPS = {"ear": 500, "codec": 1100, "prior": 360, "dialogue": 400}
# The same of windows of 0.4 s.
LIVE_STEPS = {"ear": 500, "codec": 1100, "prior": 400, "dialogue": 600}
SEED = 0
EVAL_CONVERSATIONS = 8
JAW_MARGIN = 0.4


@dataclass(frozen=True)
class Check:
    """One claim about a trained stage."""

    name: str
    value: float  # as measured
    bound: float  # that the value must stay above or below
    passed: bool
    meaning: str

    def line(self) -> str:
        """Returns the claim and its verdict for the terminal."""
        verdict = "ok  " if self.passed else "FAIL"
        return f"{verdict} {self.name}: {self.value:.4f} (bound {self.bound:.4f}) - {self.meaning}"


def train(stage: str, out: Path, times: int | None, *, live: bool = False) -> None:
    """Trains a stage with its smoke config, `times` as long; None: for the steps of `STEPS`.

    With `live` windows are of 0.4 s; the ear is the same.
    """
    config = load_config(f"live/smoke/{stage}_04s" if live and stage != "ear" else f"smoke/{stage}")
    steps = LIVE_STEPS if live else STEPS
    config.data.store = str(out / "data")
    config.num_steps = steps[stage] if times is None else times * config.num_steps
    if stage == "dialogue":
        config.audio_encoder = str(out / "ear")
    parent = PARENTS.get(stage)
    run.train(config.to_dict(), out / stage, parent=None if parent is None else out / parent)


def check_all(out: Path) -> list[Check]:
    """Checks the four stages in the folder on conversations that none of them has seen."""
    return check_ear(out) + check_codec(out) + check_prior(out) + check_dialogue(out)


def held_out(out: Path, window: Window, view: str = "solo", batch_size: int = 32, batches: int = 8) -> list[Batch]:
    """Reads batches of windows of the test conversations, which no stage has seen."""
    loader = make_loader(str(out / "data"), "test", view=view, batch_size=batch_size, seed=0, window=window)
    return list(islice(iter(loader), batches))


def check_ear(out: Path) -> list[Check]:
    """Compares the ear's articulators with predicting their mean."""
    model = load(out / "ear").model
    batches = held_out(out, RELEASE_WINDOW, "pair", 16, 4)
    error, baseline = mean_over(batches, lambda batch: articulator_errors(model, batch))
    meaning = "mean squared error of the ear's articulators on held-out voices, bound: 0.8 of predicting the mean"
    return [Check("ear error", error, 0.8 * baseline, error < 0.8 * baseline, meaning)]


def check_codec(out: Path) -> list[Check]:
    """Compares reconstruction with predicting the mean."""
    checkpoint = load(out / "codec")
    model, batches = checkpoint.model, held_out(out, checkpoint.config.window)
    error, baseline = mean_over(batches, lambda batch: codec_error(model, batch))
    meaning = "L1 of the codec on held-out motion, bound: half of the L1 of predicting the mean"
    return [Check("codec L1", error, baseline / 2, error < baseline / 2, meaning)]


def check_prior(out: Path) -> list[Check]:
    """Compares cross-entropy with the bits' own marginal frequencies."""
    checkpoint = load(out / "prior")
    model, batches = checkpoint.model, held_out(out, checkpoint.config.window)
    rows = [window_cross_entropy(model, batch) for batch in batches]
    value = float(np.mean([cross_entropy.mean() for cross_entropy, _ in rows]))
    bound = marginal_cross_entropy(np.concatenate([bits for _, bits in rows]), model.codec.scales)
    meaning = "nats a bit on held-out motion, bound: the marginals of each scale's bits"
    return [Check("prior cross-entropy", value, bound, value < bound, meaning)]


def check_dialogue(out: Path) -> list[Check]:
    """Checks that the right audio helps, and that the decoded jaw follows the own voice."""
    checkpoint = load(out / "dialogue")
    model, batches = checkpoint.model, conversation_windows(out, checkpoint.config.window)
    right = np.stack([window_cross_entropy(model, batch)[0] for batch in batches])
    wrong = np.stack([window_cross_entropy(model, with_other_audio(batch))[0] for batch in batches])
    # [windows, 2 * conversations]: the two people of a conversation are neighbours.
    by_conversation = (wrong - right).mean(axis=0).reshape(-1, 2).mean(axis=1)
    gain = float(by_conversation.mean())
    low, high = bootstrap_interval(by_conversation)
    log.info("dialogue: %.4f nats a bit with the right audio, %.4f with another's", right.mean(), wrong.mean())
    gain_meaning = "nats a bit gained by the right audio over another conversation's, bound: width of its 95 % interval"
    own, shuffled = jaw_correlations(model, out)
    margin_meaning = (
        f"decoded jaw with own loudness while speaking ({own:.3f}) less with shuffled audio ({shuffled:.3f})"
    )
    return [
        Check("dialogue audio gain", gain, high - low, gain > high - low, gain_meaning),
        Check("dialogue jaw correlation", own - shuffled, JAW_MARGIN, own - shuffled >= JAW_MARGIN, margin_meaning),
    ]


def conversation_windows(out: Path, window: Window) -> list[Batch]:
    """Cuts batches that hold one window of every test conversation each."""
    store, rng = Store(str(out / "data")), np.random.default_rng(SEED)
    sources = [store.source("test", i) for i in range(len(store.lengths("test")))]
    last = min(source.num_frames for source in sources) - 200
    batches = []
    for start in range(0, last, 50):
        windows = [cut_window(source, start, inclusive(rng), window) for source in sources]
        names = ("motion", "prev", "style", "audio")
        batches.append({name: np.stack([cut[name] for cut in windows]).astype(np.float32) for name in names})
    return batches


def jaw_correlations(model: UniLS, out: Path) -> tuple[float, float]:
    """Correlates the decoded jaw with loudness while speaking.

    Returns the mean over people of test conversations: with the own voice, and with the voice of
    another conversation.
    """
    store = Store(str(out / "data"))
    chosen = range(min(EVAL_CONVERSATIONS, len(store.lengths("test"))))
    items = [whole_sequence(store.read("test", i)) for i in chosen]
    own, shuffled = [], []
    for i, item in enumerate(items):
        motion = decode(model, *item["audio"], seed=i)
        others = items[(i + 1) % len(items)]["audio"]
        for person, speaking in enumerate(item["speech_mask"]):
            for audio, values in ((item["audio"], own), (others, shuffled)):
                loudness = frame_loudness(audio[person])
                values.append(jaw_loudness(motion[person], loudness, speaking))
    return float(np.nanmean(own)), float(np.nanmean(shuffled))


def plot_losses(out: Path) -> None:
    """Writes loss_curves.png: training and validation loss of the stages."""
    figure, axes = plt.subplots(1, len(STAGES), figsize=(4 * len(STAGES), 3.2), layout="constrained")
    for axis, stage in zip(axes, STAGES, strict=True):
        rows = [json.loads(line) for line in (out / stage / "metrics.jsonl").read_text().splitlines()]
        for split in ("train", "val"):
            chosen = [row for row in rows if row["split"] == split]
            axis.plot([row["step"] for row in chosen], [row["loss"] for row in chosen], marker=".", label=split)
        axis.set(title=stage, xlabel="step", ylabel="loss")
        axis.set_yscale("log" if stage in ("ear", "codec") else "linear")
        axis.legend()
    with atomic_output(out / "loss_curves.png") as partial:
        figure.savefig(partial, dpi=120)
    plt.close(figure)


def draw_stills(out: Path) -> None:
    """Writes stills.png: both people at ten moments of the conversation of motion.npz."""
    file, _ = finish_file(load_motion(out / "motion.npz"), "motion.npz")
    sheet = contact_sheet(file.motion, file.expression_basis)
    with atomic_output(out / "stills.png") as partial:
        matplotlib.image.imsave(partial, sheet)


def contact_sheet(
    motion: Float[np.ndarray, "P T 108"], expression_basis: str, size: int = 240
) -> UInt8[np.ndarray, "H W 3"]:
    """Draws the people of finished motion at ten moments as far apart as possible, five a row."""
    moments = [motion.shape[1] * (2 * part + 1) // 20 for part in range(10)]
    frames = [
        render_frame(motion[:, moment], standin_asset(), expression_basis=expression_basis, size=size)
        for moment in moments
    ]
    return np.concatenate([np.concatenate(frames[i : i + 5], axis=1) for i in (0, 5)])
