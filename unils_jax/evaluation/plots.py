"""The plots of the HTML reports of an evaluation and of a store, as base64 of SVG."""

import base64
import io
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot is imported: a machine without a display has no other backend

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Units of the histograms of a store, by their names in its report.
_UNITS = {
    "expression": "coefficient",
    "head": "rad",
    "jaw": "rad",
    "eyes": "rad",
    "loudness_db": "dB re full scale",
    "seconds": "s",
    "speech_share": "share of a person's frames",
    "offset_frames": "frames that the motion is late",
}

PREDICTION, TRUTH = "#1f77b4", "#444444"
TRACE_FRAMES = 500  # 20 s of a clip
FPS = 25.0


def plots(report: dict[str, Any], traces: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns titles and base64-encoded SVG pictures of an evaluation, those that have data."""
    drawn = [
        ("Deviations by role", _role_bars(report["metrics"])),
        ("Fréchet distances by role", _fid_bars(report["metrics"])),
        ("Distributions of channel groups", _distributions(report["pictures"]["distributions"])),
        ("Spectra of gaze and head", _spectra(report["pictures"]["spectra"])),
        *((f"The {which} clip: {trace['name']}", _trace(trace)) for which, trace in traces.items()),
    ]
    return [(title, encode(figure)) for title, figure in drawn if figure is not None]


def store_plots(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns titles and base64-encoded SVG pictures of a store's report, those that have data."""
    drawn = [("Histograms", _histograms(report["histograms"])), ("Voice and mouth", _lags(report["alignment"]))]
    return [(title, encode(figure)) for title, figure in drawn if figure is not None]


def encode(figure: Figure) -> str:
    """Returns the figure as base64 of SVG, and closes it."""
    buffer = io.BytesIO()
    # A constant salt and no date: the same report gives the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "unils"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


def _bars(axis: Axes, entries: dict[str, dict[str, Any]]) -> None:
    """Draws one bar with its interval for each entry; undefined entries stay empty."""
    for place, entry in enumerate(entries.values()):
        if entry["mean"] is None:
            continue
        axis.bar(place, entry["mean"], color=PREDICTION, width=0.6)
        if entry["interval"] is not None:
            axis.vlines(place, *entry["interval"], color="black")
    axis.set_xticks(range(len(entries)), list(entries))


def _role_bars(metrics: dict[str, Any]) -> Figure | None:
    names = [name for name in ("FDD", "PDD", "JDD") if f"unils/speaking/{name}" in metrics]
    figure, axes = plt.subplots(1, len(names), figsize=(3.6 * len(names), 3), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        roles = {role: metrics[f"unils/{role}/{name}"] for role in ("speaking", "listening")}
        _bars(axis, roles)
        axis.set(title=name, ylabel=roles["speaking"]["unit"])
    return figure


def _fid_bars(metrics: dict[str, Any]) -> Figure | None:
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for axis, name in zip(axes, ("expression_fid", "pose_fid"), strict=True):
        _bars(axis, {role: metrics[f"fid/{role}/{name}"] for role in ("speaking", "listening", "both")})
        axis.set(title=name)
    return figure


def _distributions(counts: dict[str, Any]) -> Figure | None:
    groups = [group for group in counts if group != "bins"]
    middles = np.convolve(counts["bins"], [0.5, 0.5], mode="valid")
    figure, axes = plt.subplots(1, len(groups), figsize=(3 * len(groups), 2.8), layout="constrained", squeeze=False)
    for axis, group in zip(axes[0], groups, strict=True):
        for side, color in (("truth", TRUTH), ("prediction", PREDICTION)):
            # As shares: groups differ in their number of channels.
            values = np.asarray(counts[group][side], float)
            axis.step(middles, values / max(values.sum(), 1), where="mid", color=color, label=side)
        axis.set(title=group, xlabel="deviations from the training mean", yticks=[])
    axes[0][0].legend()
    return figure


def _spectra(spectra: dict[str, Any]) -> Figure | None:
    names = [name for name in spectra if name != "frequencies_hz"]
    if not names:
        return None
    figure, axes = plt.subplots(1, len(names), figsize=(3.2 * len(names), 2.8), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for side, color in (("truth", TRUTH), ("prediction", PREDICTION)):
            # A floor keeps the line on a logarithmic axis where a frozen face has no power.
            axis.loglog(spectra["frequencies_hz"], np.maximum(spectra[name][side], 1e-12), color=color, label=side)
        axis.set(title=name.replace("/", ": "), xlabel="Hz", ylabel="rad$^2$/Hz")
    axes[0][0].legend()
    return figure


def _trace(trace: dict[str, Any]) -> Figure | None:
    tracks = [name for name in trace if name not in ("name", "speaking")]
    figure, axes = plt.subplots(len(tracks), 1, figsize=(10, 1.8 * len(tracks)), layout="constrained", sharex=True)
    # A whole conversation would be a black band: its beginning shows the movement.
    seconds = np.arange(min(TRACE_FRAMES, len(trace["speaking"]))) / FPS
    for axis, name in zip(axes, tracks, strict=True):
        frames = trace[name][: len(seconds)]
        axis.fill_between(
            seconds,
            0,
            1,
            where=trace["speaking"][: len(seconds)],
            transform=axis.get_xaxis_transform(),
            color="#e8f0e0",
            label="speaks",
        )
        axis.plot(seconds, frames[:, 1], color=TRUTH, label="truth")
        axis.plot(seconds, frames[:, 0], color=PREDICTION, label="prediction")
        axis.set(ylabel=f"{name} (rad)")
    axes[0].legend(loc="upper right", ncols=3)
    axes[-1].set(xlabel="s")
    return figure


def _histograms(histograms: dict[str, Any]) -> Figure | None:
    # A record without audio or speech fills no bins of theirs: an empty axis says nothing.
    filled = {name: h for name, h in histograms.items() if sum(h["counts"])}
    if not filled:
        return None
    columns = min(4, len(filled))
    rows = -(-len(filled) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 2.6 * rows), layout="constrained", squeeze=False)
    for axis, (name, histogram) in zip(axes.flat, filled.items(), strict=False):
        axis.stairs(histogram["counts"], histogram["edges"], fill=True, color=PREDICTION)
        axis.set(title=name.replace("_", " "), xlabel=_UNITS[name], yticks=[])
    for axis in axes.flat[len(filled) :]:
        axis.set_axis_off()
    return figure


def _lags(alignment: dict[str, Any]) -> Figure | None:
    curve = alignment.get("curve")
    if curve is None:
        return None
    figure, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
    axis.plot(np.asarray(curve["lags"]), curve["correlation"], color=PREDICTION)
    axis.axvline(alignment["offset_frames"], color="#444444", linewidth=1)
    axis.set(xlabel="frames that the motion is late", ylabel="correlation of jaw and loudness")
    return figure
