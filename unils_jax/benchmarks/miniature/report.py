"""The miniature's report: tables, which parts of the paper's order hold, and the picture."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from unils_jax.benchmarks.miniature.plan import BASELINE, BASELINE_NOTE
from unils_jax.benchmarks.miniature.scores import BLINKS, PROTOCOL
from unils_jax.evaluation.report import COLUMNS, PUBLISHED
from unils_jax.files import markdown_table
from unils_jax.motion import FPS

Scores = Mapping[str, dict[str, Any]]  # by system

LVE, LISTENING_FDD, F_FID = (COLUMNS[name] for name in ("LVE", "listening FDD", "F-FID"))
# LVE, listening FDD and F-FID of the paper's ablations.
ABLATIONS = {
    "without the audio-free stage": (6.32, 25.64, 5.97),
    "one cross-attention, mixed audio": (11.48, 27.46, 5.97),
    "without the unpaired set": (6.26, 17.81, 4.62),
}
# What the paper found: in each figure the first system is better than the second.
ORDER = (
    (LISTENING_FDD, "unils", "no_prior"),
    (LISTENING_FDD, "no_prior", BASELINE),
    (F_FID, "unils", "no_prior"),
    (F_FID, "no_prior", BASELINE),
    (LVE, "unils", "mixed"),
    (LVE, "no_prior", "mixed"),
    (LVE, "no_unpaired", "mixed"),
)
NOTES = (
    "Synthetic conversations, the stand-in head's millimetres: rows compare with each other, not with the paper's.",
    "In brackets 95 % bootstrap intervals over conversations, of the mean over people and training seeds.",
    "Nods and smiles: share of the partner's phrase ends and smiles that are answered within a second (chance: of "
    "seconds at any time). A smile cannot be heard: only who sees the partner can answer it.",
    "Another take: the same words by the same people, their faces moved anew; no model of the audio can be expected to "
    "come nearer to the truth than the truth to itself.",
    BASELINE_NOTE,
)


class Verdict(NamedTuple):
    """Whether the paper's order of two systems holds in one figure."""

    figure: str
    better: str  # the paper's better system
    worse: str
    difference: float  # worse less better
    interval: tuple[float, float] | None  # of the difference; None: of a figure of the whole split
    words: str


def rows(scores: Scores, titles: Mapping[str, str]) -> list[list[str]]:
    """Returns the table of the systems, its head first; the head names the truth's blinks."""
    truth = next(iter(scores.values()))["metrics"][BLINKS]["truth"]
    head = ["", *COLUMNS, f"blinks/min (truth {_number(truth)})", "nods (chance)", "smiles (chance)"]
    lines = [head]
    for system, title in titles.items():
        metrics, answers = scores[system]["metrics"], scores[system]["reactions"]
        cells = [_cell(metrics[path]) for path in (*COLUMNS.values(), BLINKS)]
        said = [f"{answers[what]['rate']:.0%} ({answers[what]['chance']:.0%})" for what in ("nods", "smiles")]
        lines.append([title, *cells, *said])
    return lines


def published_rows() -> list[list[str]]:
    """Returns the paper's table with its ablations, which give three columns."""
    names = list(COLUMNS)
    lines = [["", *names], *([name, *map(_number, values)] for name, values in PUBLISHED.items())]
    for name, values in ABLATIONS.items():
        known = dict(zip((LVE, LISTENING_FDD, F_FID), values, strict=True))
        lines.append([f"UniLS {name}", *(_number(known.get(path)) for path in COLUMNS.values())])
    return lines


def verdicts(scores: Scores) -> list[Verdict]:
    """Decides for each comparison of the paper whether its order holds.

    Differences are of the same conversations; conversations and training seeds are resampled.
    Fréchet distances belong to no conversation: their own intervals are compared.
    """
    return [_verdict(scores, *order) for order in ORDER]


def _verdict(scores: Scores, figure: str, better: str, worse: str) -> Verdict:
    first, second = scores[better], scores[worse]
    difference = second["metrics"][figure]["mean"] - first["metrics"][figure]["mean"]
    if figure in first["values"]:
        interval = _paired_interval(*(np.array(s["values"][figure], np.float64) for s in (first, second)))
        apart = interval[0] > 0 or interval[1] < 0
    else:
        interval = None
        low, high = (s["metrics"][figure]["interval"] for s in (first, second))
        apart = low[1] < high[0] or high[1] < low[0]
    words = ("holds" if difference > 0 else "is the other way round") + (
        ", intervals apart" if apart else ", but intervals overlap"
    )
    return Verdict(figure, better, worse, difference, interval, words)


def _paired_interval(first: np.ndarray, second: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """Resamples the mean difference of [conversations, seeds]; each system draws its own seeds."""
    rng = np.random.default_rng(0)
    count = len(first)
    differences = []
    for _ in range(draws):
        chosen = rng.integers(count, size=count)
        means = [np.nanmean(x[chosen][:, rng.integers(x.shape[1], size=x.shape[1])]) for x in (first, second)]
        differences.append(means[1] - means[0])
    low, high = np.quantile(differences, [0.025, 0.975])
    return float(low), float(high)


def markdown(scores: Scores, titles: Mapping[str, str], summary: str) -> str:
    """Writes tables, verdicts and notes as Markdown."""
    lines = ["# The paper in miniature", "", summary, "", *markdown_table(rows(scores, titles)), ""]
    lines += [
        "![how lively listeners are](listening.png)",
        "",
        "## The paper's figures",
        "",
        *markdown_table(published_rows()),
        "",
    ]
    lines += ["## What of the paper's order holds", ""]
    names = {path: name for name, path in COLUMNS.items()}
    for verdict in verdicts(scores):
        interval = (
            "" if verdict.interval is None else f" ({_number(verdict.interval[0])} to {_number(verdict.interval[1])})"
        )
        lines.append(
            f"- {names[verdict.figure]}, {titles[verdict.better]} below {titles[verdict.worse]}: {verdict.words}; "
            f"difference {_number(verdict.difference)}{interval}"
        )
    return "\n".join([*lines, "", *(f"- {note}" for note in NOTES), ""])


def picture(scores: Scores, titles: Mapping[str, str]) -> Figure:
    """Plots how lively listeners are over time, the truth in black; a low curve is a stiff face."""
    figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
    truth = _smooth(next(iter(scores.values()))["liveliness"]["truth"])
    seconds = PROTOCOL.first_frame / FPS + np.arange(len(truth)) / FPS
    axis.plot(seconds, truth, color="black", linewidth=2, label="truth")
    for system, title in titles.items():
        axis.plot(seconds, _smooth(scores[system]["liveliness"]["system"]), linewidth=1.2, label=title)
    axis.set(xlabel="seconds of the conversation", ylabel="deviation within a second, training deviations")
    axis.set(title="Expression of listeners over time", ylim=(0, None))
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    return figure


def _smooth(curve: list[float | None], frames: int = 50) -> np.ndarray:
    values = np.array(curve, np.float64)
    known = np.isfinite(values)
    kernel = np.ones(frames)
    total = np.convolve(np.where(known, values, 0), kernel, "same")
    return total / np.maximum(np.convolve(known, kernel, "same"), 1)


def _cell(entry: dict[str, Any]) -> str:
    if entry["interval"] is None:
        return _number(entry["mean"])
    return f"{_number(entry['mean'])} ({_number(entry['interval'][0])}–{_number(entry['interval'][1])})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
