"""The report on what audio explains: Markdown, an HTML page and its pictures."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from unils_jax.evaluation.analyses.imbalance import GROUPS, REGRESSIONS, ROLES, SOURCES, table
from unils_jax.evaluation.report import Section, encode, render_page
from unils_jax.files import markdown_table

COLOURS = {"own": "#1f77b4", "other": "#e6842a"}


def markdown(report: dict[str, object]) -> str:
    """Returns the report in Markdown."""
    frames = " and ".join(f"{count} frames of {role}" for role, count in report["frames"].items())
    lines = [
        "# What audio explains",
        "",
        f"Share of each channel group's variance that audio explains, on people that were not trained on; "
        f"in brackets 95 % under resampling of people. {report['people']} people; {frames}.",
        "",
        *markdown_table(table(report)),
        "",
    ]
    return "\n".join(lines)


def page(report: dict[str, object]) -> str:
    """Returns the report as one HTML page that needs no other file."""
    sections = [
        Section(
            paragraph="Share of each channel group's variance that a regression on audio explains, on people that it "
            f"was not trained on: {report['people']} people. Below 0: worse than a person's mean.",
            tables=[table(report)],
        ),
        Section("Shares by role", picture=encode(_bars(report["explained"]))),
    ]
    if report["picture"]:
        note = (
            "t-SNE of the same frames by audio (speaking: the own track, listening: the other's) and by motion, "
            "coloured by the loudness of that audio. Where the colours of the motion mix, audio says little about it."
        )
        sections.append(Section("Audio against motion", paragraph=note, picture=encode(_scatter(report["picture"]))))
    return render_page("What audio explains", sections)


def _bars(explained: dict[str, object]) -> Figure:
    """Draws each group's best share by role and source; negative shares as none."""
    figure, axes = plt.subplots(1, len(ROLES), figsize=(9, 3), layout="constrained", sharey=True)
    for axis, role in zip(axes, ROLES, strict=True):
        for k, source in enumerate(SOURCES):
            results = explained[role][source]
            best = [_best(results, group) for group in GROUPS]
            axis.bar(np.arange(len(GROUPS)) + 0.4 * k - 0.2, best, 0.38, color=COLOURS[source], label=f"{source} audio")
        axis.set_xticks(range(len(GROUPS)), list(GROUPS))
        axis.set(title=role, ylim=(0, 1))
    axes[0].set_ylabel("share of variance explained")
    axes[1].legend(frameon=False)
    return figure


def _best(results: dict[str, object], group: str) -> float:
    values = [results[name][group]["value"] for name in REGRESSIONS if results[name]]
    return max([0.0, *(value for value in values if value is not None)])


def _scatter(picture: dict[str, object]) -> Figure:
    """Draws audio and motion of each role."""
    figure, axes = plt.subplots(len(picture), 2, figsize=(9, 4.2 * len(picture)), layout="constrained", squeeze=False)
    for row, (role, placed) in zip(axes, picture.items(), strict=True):
        for axis, name in zip(row, ("audio", "motion"), strict=True):
            places = np.array(placed[name])
            axis.scatter(*places.T, c=placed["loudness"], s=4, cmap="viridis", rasterized=True)
            axis.set(title=f"{role}: {name}", xticks=[], yticks=[])
    return figure
