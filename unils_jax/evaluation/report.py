"""Writes a report as files: JSON with everything, Markdown with published rows, an HTML page."""

import base64
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unils_jax.errors import counted, shown
from unils_jax.files import markdown_table, write_text
from unils_jax.motion import FPS

Report = dict[str, Any]
Rows = list[list[str]]

# The paper's table (Seamless Interaction, test): name, then the columns' values; None where the
# paper gives none.
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
# DualTalk's and TIMAR's tables (DualTalk's test set): FD and SID of expression, jaw and head; a
# higher SID is better.
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
    """Returns the paths of a report's three files.

    They are `report.json`, `report.md` and `report.html` for `report.json`; other stems alike.
    """
    out = Path(out)
    return {"json": out, "markdown": out.with_name(f"{out.stem}.md"), "html": out.with_suffix(".html")}


def write_report(out: str | os.PathLike, report: Report, traces: dict[str, Any]) -> dict[str, Path]:
    """Writes the three files of an evaluation, each whole or not at all.

    `traces` are the frames of the best and the worst clip. Returns `report_paths`.
    """
    return write_files(out, report, markdown(report), page(report, traces))


def write_files(out: str | os.PathLike, report: Report, in_markdown: str, in_html: str) -> dict[str, Path]:
    """Writes a report in its three forms, each whole or not at all; returns `report_paths`."""
    paths = report_paths(out)
    contents = {"json": json.dumps(report, indent=1, allow_nan=False) + "\n", "markdown": in_markdown, "html": in_html}
    for kind, path in paths.items():
        write_text(path, contents[kind])
    return paths


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _interval(entry: dict[str, Any]) -> str:
    return "–" if entry["interval"] is None else f"{_number(entry['interval'][0])} to {_number(entry['interval'][1])}"


def comparison(report: Report) -> Rows:
    """Returns the rows of the published table, this report's last; the head comes first."""
    metrics = report["metrics"]
    head = ["", *COLUMNS]
    rows = [[name, *map(_number, values)] for name, values in PUBLISHED.items()]
    own = [_number(metrics[path]["mean"]) if path in metrics else "–" for path in COLUMNS.values()]
    return [head, *rows, ["this evaluation", *own]]


def dualtalk_comparison(report: Report) -> Rows:
    """Returns the same for the rows that DualTalk and TIMAR published, in their units."""
    rows = [[name, *map(_number, values)] for name, values in PUBLISHED_DUALTALK.items()]
    means = [(report["metrics"][path]["mean"], scale) for path, scale in DUALTALK_COLUMNS.values()]
    own = [_number(None if mean is None else scale * mean) for mean, scale in means]
    return [["", *DUALTALK_COLUMNS], *rows, ["this evaluation", *own]]


def family_table(report: Report, family: str) -> Rows:
    """Returns the rows of all figures of a family, their head first."""
    rows = [["figure", "unit", "mean", "95 % interval", "truth", "over truth", "conversations", "deviation over seeds"]]
    for path, entry in report["metrics"].items():
        if path.startswith(family + "/"):
            rows.append(
                [
                    path.removeprefix(family + "/").replace("/", " "),
                    entry["unit"],
                    _number(entry["mean"]),
                    _interval(entry),
                    _number(entry.get("truth")),
                    _number(entry.get("over_truth")),
                    str(entry["conversations"]),
                    _number(entry["seed_std"]),
                ]
            )
    return rows


def skipped_table(report: Report) -> Rows:
    """Returns the rows of the records that were not scored, their head first."""
    return [["left out", "why"], *([item["name"], item["reason"]] for item in report["skipped"])]


def summary(report: Report) -> str:
    """Returns one line that says what was scored."""
    data, settings = report["data"], report["settings"]
    seeds = f", seeds {', '.join(map(str, settings['seeds']))}" if settings["seeds"] else ""
    return (
        f"{counted(data['conversations'], 'conversation')} ({data['scored_hours']:.2f} person-hours) of "
        f"{data['store']}, split {data['split']}; protocol {settings['protocol']['name']}{seeds}; "
        f"{settings['expression_basis']} basis; motion from {settings['motion_from']}"
    )


def markdown(report: Report) -> str:
    """Returns the report in Markdown."""
    lines = ["# Evaluation", "", summary(report) + ".", "", "## With the published rows", ""]
    lines += [*markdown_table(comparison(report)), "", *markdown_table(dualtalk_comparison(report)), ""]
    lines += [*(f"- {note}" for note in report["notes"]), ""]
    for family, title in FAMILIES.items():
        lines += [f"## {title}", "", *markdown_table(family_table(report, family)), ""]
    if report["skipped"]:
        lines += ["## Records left out", "", *markdown_table(skipped_table(report)), ""]
    settings = json.dumps({"settings": report["settings"], "versions": report["versions"]}, indent=1)
    return "\n".join([*lines, "## Settings", "", "```json", settings, "```", ""])


@dataclass(frozen=True)
class Section:
    """One section of a page; what is empty is left out."""

    heading: str = ""
    paragraph: str = ""
    tables: Sequence[Rows] = ()
    own_last: bool = False  # the last row of each table is this report's, and is marked
    notes: Sequence[str] = ()
    picture: str = ""  # base64 of an SVG
    text: str = ""  # shown as it is, line by line
    folded: bool = False  # shown after a click on the heading


def page(report: Report, traces: dict[str, Any]) -> str:
    """Returns the report as one HTML page that needs no other file."""
    notes = report["notes"]
    published = [comparison(report), dualtalk_comparison(report)]
    sections = [
        Section(paragraph=summary(report) + "."),
        Section("With the published rows", tables=published, own_last=True, notes=notes),
        *(Section(title, picture=picture) for title, picture in plots(report, traces)),
        *(Section(title, tables=[family_table(report, name)], folded=True) for name, title in FAMILIES.items()),
    ]
    if report["skipped"]:
        sections.append(Section("Records left out", tables=[skipped_table(report)]))
    about = {key: report[key] for key in ("settings", "data", "versions", "time", "host")}
    sections.append(Section("Settings", text=json.dumps(about, indent=1)))
    return render_page("Evaluation", sections)


def store_page(report: Report, in_markdown: str) -> str:
    """Returns the report of a verified store as one HTML page that needs no other file.

    `in_markdown` is the report's summary in Markdown, shown as it is.
    """
    rows = [["channel", "min", "max", "mean", "std"]]
    rows += [[name, *map(_number, values.values())] for name, values in report["channels"].items()]
    numbers = {key: report[key] for key in ("splits", "speech", "alignment")}
    sections = [
        Section(text=in_markdown),
        *(Section(title, picture=picture) for title, picture in store_plots(report)),
        Section("Channels", tables=[rows], folded=True),
        Section("Numbers", text=json.dumps(numbers, indent=1)),
    ]
    return render_page("Store", sections)


def render_page(title: str, sections: Sequence[Section]) -> str:
    """Returns one HTML page that needs no other file."""
    # Names come from data of strangers: every value that the template prints is escaped.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unils_jax", "evaluation"),
        autoescape=True,
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
    )
    return environment.get_template("report.html").render(title=title, sections=sections)


def _printable(value: object) -> object:
    return "\n".join(map(shown, value.split("\n"))) if type(value) is str else value


matplotlib.use("Agg")  # before pyplot is imported: a machine without a display has no other backend


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
    if alignment["offset_frames"] is not None:
        axis.axvline(alignment["offset_frames"], color="#444444", linewidth=1)
    axis.set(xlabel="frames that the motion is late", ylabel="correlation of jaw and loudness")
    return figure
