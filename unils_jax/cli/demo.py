"""`unils demo`: the whole story at laptop size, with the proof that each stage has learnt."""

import argparse
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

CONVERSATIONS, MINUTES, SEED = 120, 0.6, 0
# Of each stage, fewer than its smoke config says: eight minutes on two cores.
STEPS = {"codec": 1100, "prior": 360, "dialogue": 400}
SHOWN_S = 20  # of the conversation that is decoded, filmed and made a page
EVAL_CONVERSATIONS = 8
JAW_MARGIN = 0.4


@dataclass(frozen=True)
class Check:
    """One claim: the measured value, the bound it must stay on the right side of, and whether it does."""

    name: str
    value: float
    bound: float
    passed: bool
    meaning: str

    def line(self) -> str:
        verdict = "ok  " if self.passed else "FAIL"
        return f"{verdict} {self.name}: {self.value:.4f} (bound {self.bound:.4f}) - {self.meaning}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sets the description, a working example and the flags."""
    parser.description = (
        "Makes synthetic conversations, trains codec, prior and dialogue on them, proves on held-out conversations "
        "that each has learnt, decodes one and renders it. Minutes on two CPU cores; run again it continues."
    )
    parser.epilog = "example:\n  unils demo --out runs/demo\n  unils demo --out runs/longer --times 3"
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="results folder (default: %(default)s)")
    parser.add_argument(
        "--times",
        type=int,
        metavar="N",
        help="train every stage N times as long as its smoke config says (default: three quarters, roughly)",
    )


def run(args: argparse.Namespace) -> None:
    """Runs all phases. Exits 1 where a check fails: then something is broken that must not pass unnoticed."""
    from unils_jax.errors import UserError
    from unils_jax.files import atomic_output

    if args.times is not None and args.times < 1:
        raise UserError(f"--times must be at least 1, got {args.times}")
    out = Path(args.out)
    seconds: dict[str, float] = {}
    with phase("data", seconds):
        make_data(out / "data")
    parent = None
    for stage in ("codec", "prior", "dialogue"):
        with phase(stage, seconds):
            train(stage, out, parent, args.times)
        parent = str(out / stage)
    with phase("checks", seconds):
        checks = check_codec(out) + check_prior(out) + check_dialogue(out)
    with phase("evaluate", seconds):
        evaluate(out)
    with phase("decode and render", seconds):
        decode_and_render(out)
        page = make_page(out)
        plot_losses(out)
        draw_stills(out)
    results = {"checks": [vars(check) for check in checks], "seconds": seconds}
    with atomic_output(out / "results.json") as partial:
        partial.write_text(json.dumps(results, indent=1))
    for check in checks:
        print(check.line())
    spent = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    print(f"time: {spent}; in all {sum(seconds.values()):.0f} s")
    files = f"conversation.mp4, {page}stills.png, motion.npz, loss_curves.png, report.html, results.json"
    print(f"{out}: {files}, and the workdirs of the three stages")
    if not all(check.passed for check in checks):
        raise SystemExit(1)


@contextmanager
def phase(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Logs a phase and notes how long it took."""
    log.info("--- %s", name)
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def make_data(path: Path) -> None:
    """The synthetic store, through the very command a user would give."""
    from unils_jax.cli import data

    parser = argparse.ArgumentParser()
    data.add_arguments(parser)
    flags = ["--out", str(path), "--conversations", str(CONVERSATIONS), "--minutes", str(MINUTES), "--seed", str(SEED)]
    data.run(parser.parse_args(["synth", *flags]))


def train(stage: str, out: Path, parent: str | None, times: int | None) -> None:
    """One stage with its smoke config, for `times` as many steps; None: for those of `STEPS`."""
    from unils_jax.config import load_config
    from unils_jax.training.run import train_stage

    config = load_config(f"smoke/{stage}")
    config.data.store = str(out / "data")
    config.num_steps = STEPS[stage] if times is None else times * config.num_steps
    train_stage(config.to_dict(), out / stage, parent)


def held_out(out: Path, view: str, batch_size: int, num_batches: int) -> list[dict[str, Any]]:
    """Batches of windows of the test conversations, which no stage has seen."""
    from data_pipelines.loader import make_loader

    return list(
        islice(iter(make_loader(str(out / "data"), "test", view=view, batch_size=batch_size, seed=0)), num_batches)
    )


def check_codec(out: Path) -> list[Check]:
    """Reconstruction against predicting the mean."""
    from unils_jax.checkpoints.loading import load
    from unils_jax.evaluation.likelihood import codec_error, mean_over

    model = load(out / "codec").model
    error, baseline = mean_over(held_out(out, "solo", 32, 8), lambda batch: codec_error(model, batch))
    meaning = "L1 of the codec on held-out motion, bound: half of the L1 of predicting the mean"
    return [Check("codec L1", error, baseline / 2, error < baseline / 2, meaning)]


def check_prior(out: Path) -> list[Check]:
    """Cross-entropy against the bits' own marginal frequencies."""
    import numpy as np

    from unils_jax.checkpoints.loading import load
    from unils_jax.evaluation.likelihood import marginal_cross_entropy, window_cross_entropy

    model = load(out / "prior").model
    rows = [window_cross_entropy(model, batch) for batch in held_out(out, "solo", 32, 8)]
    value = float(np.mean([cross_entropy.mean() for cross_entropy, _ in rows]))
    bound = marginal_cross_entropy(np.concatenate([bits for _, bits in rows]), model.codec.scales)
    meaning = "nats a bit on held-out motion, bound: the marginals of each scale's bits"
    return [Check("prior cross-entropy", value, bound, value < bound, meaning)]


def check_dialogue(out: Path) -> list[Check]:
    """The right audio must tell more than another conversation's, and the decoded jaw must follow the own voice."""
    import numpy as np

    from unils_jax.checkpoints.loading import load
    from unils_jax.evaluation.likelihood import window_cross_entropy, with_other_audio
    from unils_jax.evaluation.statistics import bootstrap_interval

    model = load(out / "dialogue").model
    batches = conversation_windows(out)
    right = np.stack([window_cross_entropy(model, batch)[0] for batch in batches])
    wrong = np.stack([window_cross_entropy(model, with_other_audio(batch))[0] for batch in batches])
    # [windows, 2 * conversations]: the people of a conversation stand side by side.
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


def conversation_windows(out: Path) -> list[dict[str, Any]]:
    """Batches that hold one window of every test conversation each."""
    import numpy as np

    from data_pipelines.loader import inclusive
    from data_pipelines.store.reader import Store
    from data_pipelines.windows import cut_window

    store, rng = Store(str(out / "data")), np.random.default_rng(SEED)
    sources = [store.source("test", i) for i in range(len(store.lengths("test")))]
    last = min(source.num_frames for source in sources) - 200
    batches = []
    for start in range(0, last, 50):
        windows = [cut_window(source, start, inclusive(rng)) for source in sources]
        names = ("motion", "prev", "style", "audio")
        batches.append({name: np.stack([window[name] for window in windows]).astype(np.float32) for name in names})
    return batches


def jaw_correlations(model: Any, out: Path) -> tuple[float, float]:
    """Mean correlation of the decoded jaw with the own loudness while speaking, and with another conversation's."""
    import numpy as np

    from data_pipelines.store.reader import Store
    from data_pipelines.windows import whole_sequence
    from unils_jax.audio import frame_loudness
    from unils_jax.evaluation.likelihood import jaw_loudness_correlation
    from unils_jax.inference.conversations import decode

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
                values.append(jaw_loudness_correlation(motion[person], loudness, speaking))
    return float(np.nanmean(own)), float(np.nanmean(shuffled))


def evaluate(out: Path) -> None:
    """`unils evaluate` on the test conversations: report.json, REPORT.md and report.html."""
    from unils_jax.cli import evaluate

    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    flags = ["--checkpoint", str(out / "dialogue"), "--data", str(out / "data"), "--out", str(out / "report.json")]
    evaluate.run(parser.parse_args(flags))


def decode_and_render(out: Path) -> None:
    """The first seconds of a held-out conversation's two tracks as files, then `unils decode` on them."""
    from data_pipelines.store.reader import Store
    from data_pipelines.windows import whole_sequence
    from unils_jax.audio import write_wav
    from unils_jax.cli import decode
    from unils_jax.motion import SAMPLE_RATE

    audio = whole_sequence(Store(str(out / "data")).read("test", 0))["audio"][:, : SHOWN_S * SAMPLE_RATE]
    files = [str(out / f"speaker{person + 1}.wav") for person in range(2)]
    for path, track in zip(files, audio, strict=True):
        write_wav(path, track)
    parser = argparse.ArgumentParser()
    decode.add_arguments(parser)
    flags = ["--checkpoint", str(out / "dialogue"), "--audio", files[0], "--audio2", files[1]]
    flags += ["--out", str(out / "motion.npz"), "--video", str(out / "conversation.mp4")]
    decode.run(parser.parse_args(flags))


def make_page(out: Path) -> str:
    """conversation.html with the held-out truth beside the decode; its name for the list of files, or nothing where
    the page's script has not been built."""
    from data_pipelines.store.reader import Store
    from data_pipelines.windows import whole_sequence
    from unils_jax.cli import view
    from unils_jax.errors import UserError
    from unils_jax.motion import FPS, load_motion, save_motion
    from unils_jax.outputs.page import page_script

    try:
        page_script()
    except UserError as error:
        log.info("no page: %s", error)
        return ""
    truth = whole_sequence(Store(str(out / "data")).read("test", 0))["motion"][:, : int(SHOWN_S * FPS)]
    basis = load_motion(out / "motion.npz").expression_basis
    save_motion(out / "truth.npz", truth, expression_basis=basis, source={"record": "test 0"})
    parser = argparse.ArgumentParser()
    view.add_arguments(parser)
    flags = [str(out / "motion.npz"), "--audio", str(out / "speaker1.wav"), "--audio2", str(out / "speaker2.wav")]
    flags += ["--truth", str(out / "truth.npz"), "--out", str(out / "conversation.html"), "--title", "demo"]
    view.run(parser.parse_args(flags))
    return "conversation.html, "


def plot_losses(out: Path) -> None:
    """loss_curves.png: training and validation loss of the three stages."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from unils_jax.files import atomic_output

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
    for axis, stage in zip(axes, ("codec", "prior", "dialogue"), strict=True):
        rows = [json.loads(line) for line in (out / stage / "metrics.jsonl").read_text().splitlines()]
        for split in ("train", "val"):
            chosen = [row for row in rows if row["split"] == split]
            axis.plot([row["step"] for row in chosen], [row["loss"] for row in chosen], marker=".", label=split)
        axis.set(title=stage, xlabel="step", ylabel="loss")
        axis.set_yscale("log" if stage == "codec" else "linear")
        axis.legend()
    with atomic_output(out / "loss_curves.png") as partial:
        figure.savefig(partial, dpi=120)
    plt.close(figure)


def draw_stills(out: Path) -> None:
    """stills.png: both people at four moments of the conversation."""
    import matplotlib.image
    import numpy as np

    from unils_jax.face.standin import standin_asset
    from unils_jax.files import atomic_output
    from unils_jax.motion import load_motion, smooth
    from unils_jax.outputs.video import render_frame

    file = load_motion(out / "motion.npz")
    motion = smooth(file.motion)
    moments = [motion.shape[1] * part // 5 for part in range(1, 5)]
    frames = [
        render_frame(motion[:, moment], standin_asset(), expression_basis=file.expression_basis, size=320)
        for moment in moments
    ]
    rows = [np.concatenate(frames[i : i + 2], axis=1) for i in (0, 2)]
    with atomic_output(out / "stills.png") as partial:
        matplotlib.image.imsave(partial, np.concatenate(rows, axis=0))
