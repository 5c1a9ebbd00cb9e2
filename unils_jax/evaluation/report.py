"""The evaluation as files: JSON with everything, Markdown beside the published rows, an HTML page with plots."""

import html
import json
import os
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from unils_jax.evaluation.plots import PREDICTION, encode, plots
from unils_jax.files import atomic_output

Report = dict[str, Any]

# The paper's table (Seamless Interaction, test): name, then the columns' values; None where the paper gives none.
COLUMNS = {
    "LVE": "unils/speaking/LVE",
    "MHD": "unils/speaking/MHD",
    "speaking FDD": "unils/speaking/FDD",
    "PDD": "unils/speaking/PDD",
    "JDD": "unils/speaking/JDD",
    "listening FDD": "unils/listening/FDD",
    "PDD (l)": "unils/listening/PDD",
    "JDD (l)": "unils/listening/JDD",
    "F-FID": "fid/both/expression_fid",
    "P-FID": "fid/both/pose_fid",
}
PUBLISHED: dict[str, tuple[float | None, ...]] = {
    "DiffPoseTalk": (9.48, 2.96, 32.66, 7.89, 1.40, None, None, None, None, None),
    "ARTalk": (7.46, 2.12, 31.64, 7.66, 1.19, None, None, None, None, None),
    "ARTalk + partner audio": (6.79, 2.02, 27.41, 8.55, 0.81, 30.62, 9.52, 1.53, 10.779, 0.072),
    "DualTalk": (6.35, 1.95, 37.46, 9.70, 1.02, 43.58, 10.71, 2.02, 13.143, 0.079),
    "UniLS (paper)": (5.83, 1.89, 18.41, 4.67, 0.71, 17.12, 4.75, 0.98, 4.304, 0.038),
}
# DualTalk's and TIMAR's tables (DualTalk's test set): FD and SID of expression, jaw and head, SID higher is better.
# By their size the published FD are in units of 1, 10^-3 and 10^-2.
DUALTALK_COLUMNS = {
    "FD expression": ("dualtalk/fd/expression", 1.0),
    "FD jaw x 10^3": ("dualtalk/fd/jaw", 1e3),
    "FD head x 10^2": ("dualtalk/fd/head", 1e2),
    "SID expression": ("dualtalk/sid/expression", 1.0),
    "SID jaw": ("dualtalk/sid/jaw", 1.0),
    "SID head": ("dualtalk/sid/head", 1.0),
}
PUBLISHED_DUALTALK: dict[str, tuple[float | None, ...]] = {
    "L2L": (24.61, 3.69, 7.08, 2.86, 1.89, 1.19),
    "DualTalk (paper)": (11.14, 1.90, 3.83, 3.48, 2.23, 1.72),
    "TIMAR": (8.97, 1.57, 3.08, 3.53, None, None),
}
FAMILIES = {
    "unils": "The UniLS family: lower is better",
    "fid": "Fréchet distances over the whole split: lower is better",
    "dualtalk": "The DualTalk family on 56 channels",
    "behaviour": "Behaviour: compare with the truth's column",
}


def report_paths(out: str | os.PathLike) -> dict[str, Path]:
    """The three files of a report: `report.json`, `REPORT.md`, `report.html` for `report.json`; other stems alike."""
    out = Path(out)
    return {"json": out, "markdown": out.with_name(f"{out.stem.upper()}.md"), "html": out.with_suffix(".html")}


def write_report(out: str | os.PathLike, report: Report, traces: dict[str, Any]) -> dict[str, Path]:
    """Writes the three files, each whole or not at all; `traces` are the frames of the best and the worst clip."""
    return write_files(out, report, markdown(report), page(report, traces))


def write_files(out: str | os.PathLike, report: Report, in_markdown: str, in_html: str) -> dict[str, Path]:
    """Writes a report in its three forms, each whole or not at all; returns `report_paths`."""
    paths = report_paths(out)
    contents = {"json": json.dumps(report, indent=1, allow_nan=False) + "\n", "markdown": in_markdown, "html": in_html}
    for kind, path in paths.items():
        with atomic_output(path) as partial:
            partial.write_text(contents[kind], encoding="utf-8")
    return paths


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _interval(entry: dict[str, Any]) -> str:
    return "–" if entry["interval"] is None else f"{_number(entry['interval'][0])} to {_number(entry['interval'][1])}"


def comparison(report: Report) -> list[list[str]]:
    """Rows of the table beside the published ones, its head first; the last row is this report's."""
    metrics = report["metrics"]
    head = ["", *COLUMNS]
    rows = [[name, *map(_number, values)] for name, values in PUBLISHED.items()]
    own = [_number(metrics[path]["mean"]) if path in metrics else "–" for path in COLUMNS.values()]
    return [head, *rows, ["this evaluation", *own]]


def dualtalk_comparison(report: Report) -> list[list[str]]:
    """The same beside the rows that DualTalk and TIMAR published, in their units."""
    rows = [[name, *map(_number, values)] for name, values in PUBLISHED_DUALTALK.items()]
    means = [(report["metrics"][path]["mean"], scale) for path, scale in DUALTALK_COLUMNS.values()]
    own = [_number(None if mean is None else scale * mean) for mean, scale in means]
    return [["", *DUALTALK_COLUMNS], *rows, ["this evaluation", *own]]


def family_table(report: Report, family: str) -> list[list[str]]:
    """Rows of all figures of a family, their head first."""
    rows = [["figure", "unit", "mean", "95 % interval", "truth", "conversations", "deviation over seeds"]]
    for path, entry in report["metrics"].items():
        if path.startswith(family + "/"):
            rows.append(
                [
                    path.removeprefix(family + "/").replace("/", " "),
                    entry["unit"],
                    _number(entry["mean"]),
                    _interval(entry),
                    _number(entry.get("truth")),
                    str(entry["conversations"]),
                    _number(entry["seed_std"]),
                ]
            )
    return rows


def summary(report: Report) -> str:
    """One line: what was scored."""
    data, settings = report["data"], report["settings"]
    seeds = f", seeds {', '.join(map(str, settings['seeds']))}" if settings["seeds"] else ""
    return (
        f"{data['conversations']} conversations ({data['scored_hours']:.2f} person-hours) of {data['store']}, split "
        f"{data['split']}; protocol {settings['protocol']['name']}{seeds}; "
        f"{settings['expression_basis']} basis; motion from {settings['motion_from']}"
    )


def table(rows: list[list[str]]) -> list[str]:
    """Rows, their head first, as lines of a Markdown table."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]


def markdown(report: Report) -> str:
    """The report in Markdown."""
    lines = ["# Evaluation", "", summary(report) + ".", "", "## Beside the published rows", ""]
    lines += [*table(comparison(report)), "", *table(dualtalk_comparison(report)), ""]
    lines += [*(f"- {note}" for note in report["notes"]), ""]
    for family, title in FAMILIES.items():
        lines += [f"## {title}", "", *table(family_table(report, family)), ""]
    if report["skipped"]:
        rows = [["left out", "why"], *([item["name"], item["reason"]] for item in report["skipped"])]
        lines += ["## Records left out", "", *table(rows), ""]
    settings = json.dumps({"settings": report["settings"], "versions": report["versions"]}, indent=1)
    return "\n".join([*lines, "## Settings", "", "```json", settings, "```", ""])


STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums }
td, th { border: 1px solid #ddd; padding: .25em .6em; text-align: right }
td:first-child, th:first-child { text-align: left }
tr.own { background: #eef6ee; font-weight: 600 }
img { max-width: 100%; display: block; margin: 1em 0 }
pre { background: #f6f6f6; padding: 1em; overflow: auto }
details { margin: 1em 0 }
"""


def html_table(rows: list[list[str]], own: bool = False) -> str:
    """Rows as a table, their head first; `own` marks the last row."""
    parts = ["<table>"]
    for i, row in enumerate(rows):
        tag = "td" if i else "th"
        mark = ' class="own"' if own and i == len(rows) - 1 else ""
        parts.append(f"<tr{mark}>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>")
    return "".join([*parts, "</table>"])


def page(report: Report, traces: dict[str, Any]) -> str:
    """The report as one HTML page that needs no other file."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Evaluation</title>',
        f"<style>{STYLE}</style></head><body><h1>Evaluation</h1><p>{html.escape(summary(report))}.</p>",
        "<h2>Beside the published rows</h2>",
        html_table(comparison(report), own=True),
        html_table(dualtalk_comparison(report), own=True),
        "<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in report["notes"]) + "</ul>",
    ]
    for title, picture in plots(report, traces):
        alt = html.escape(title)
        parts.append(f'<h2>{alt}</h2><img alt="{alt}" src="data:image/svg+xml;base64,{picture}">')
    for family, title in FAMILIES.items():
        table = html_table(family_table(report, family))
        parts.append(f"<details><summary>{html.escape(title)}</summary>{table}</details>")
    if report["skipped"]:
        rows = [["left out", "why"], *([item["name"], item["reason"]] for item in report["skipped"])]
        parts.append(f"<h2>Records left out</h2>{html_table(rows)}")
    about = {key: report[key] for key in ("settings", "data", "versions", "time", "host")}
    parts.append(f"<h2>Settings</h2><pre>{html.escape(json.dumps(about, indent=1))}</pre></body></html>")
    return "\n".join(parts)


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


def store_page(report: dict[str, Any], summary: str) -> str:
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
