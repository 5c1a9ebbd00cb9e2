"""The check of a store as one HTML page: what is wrong, what there is, and histograms of it."""

import html
import json
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from unils_jax.evaluation.plots import PREDICTION, encode
from unils_jax.evaluation.report import STYLE, html_table

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


def page(report: dict[str, Any], summary: str) -> str:
    """The report of a verified store as a page that needs no other file; `summary` is it in Markdown."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Store</title>',
        f"<style>{STYLE}</style></head><body><h1>Store</h1><pre>{html.escape(summary)}</pre>",
    ]
    for title, figure in (("Histograms", _histograms(report)), ("Voice and mouth", _curve(report))):
        if figure is not None:
            parts.append(f'<h2>{title}</h2><img alt="{title}" src="data:image/svg+xml;base64,{encode(figure)}">')
    rows = [["channel", "min", "max", "mean", "std"]]
    for name, values in report["channels"].items():
        rows.append([name, *("–" if value is None else f"{value:.4g}" for value in values.values())])
    parts.append(f"<details><summary>Channels</summary>{html_table(rows)}</details>")
    numbers = {key: report[key] for key in ("splits", "speech", "alignment")}
    parts.append(f"<h2>Numbers</h2><pre>{html.escape(json.dumps(numbers, indent=1))}</pre></body></html>")
    return "\n".join(parts) + "\n"


def _histograms(report: dict[str, Any]) -> Figure | None:
    filled = {name: h for name, h in report["histograms"].items() if sum(h["counts"])}
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


def _curve(report: dict[str, Any]) -> Figure | None:
    curve = report["alignment"].get("curve")
    if curve is None:
        return None
    figure, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
    axis.plot(np.asarray(curve["lags"]), curve["correlation"], color=PREDICTION)
    axis.axvline(report["alignment"]["offset_frames"], color="#444444", linewidth=1)
    axis.set(xlabel="frames that the motion is late", ylabel="correlation of jaw and loudness")
    return figure
