"""The three files of an evaluation."""

import base64
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from random_people import person

from unils_jax.evaluation.metrics import ScoreTable, jsonable
from unils_jax.evaluation.report import (
    COLUMNS,
    PUBLISHED,
    comparison,
    dualtalk_comparison,
    markdown,
    page,
    report_paths,
    store_page,
    write_report,
)
from unils_jax.files import markdown_table


class Tags(HTMLParser):
    """Collects pictures and checks that tags close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.pictures, self.outside, self.seen = [], [], [], set()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.seen.add(tag)
        self.outside += [attrs[name] for name in ("href", "src") if not attrs.get(name, "data:").startswith("data:")]
        if tag == "img":
            self.pictures.append(attrs["src"])
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def scores():
    split = ScoreTable(None, "standin", np.zeros(108, np.float32), np.ones(108, np.float32))
    split.add("first & <foremost>", [[person(1)]])
    split.add("second", [[person(2)]])
    return split


@pytest.fixture(scope="module")
def report(scores):
    return jsonable(
        {
            "metrics": scores.metrics(),
            "settings": {
                "protocol": {"name": "unils-release"},
                "seeds": [42],
                "expression_basis": "standin",
                "motion_from": "runs/<x>",
            },
            "data": {"store": "data", "split": "test", "conversations": 2, "scored_hours": 0.01},
            "skipped": [{"name": "third", "reason": "too | short"}],
            "notes": ["A note."],
            "versions": {"unils": "0"},
            "pictures": scores.pictures(),
            "time": {},
            "host": {},
        }
    )


def test_the_published_rows_stand_above_ours(report):
    rows = comparison(report)
    assert [row[0] for row in rows[1:-1]] == list(PUBLISHED)
    assert rows[0][1:] == list(COLUMNS) and all(len(row) == len(rows[0]) for row in rows)
    paper = dict(zip(rows[0], rows[-2], strict=True))
    assert (paper["LVE"], paper["listening FDD"], paper["F-FID"], paper["P-FID"]) == ("5.83", "17.12", "4.304", "0.038")
    ours = dict(zip(rows[0], rows[-1], strict=True))
    assert ours["LVE"] == "–"  # no vertices
    assert ours["F-FID"] == f"{report['metrics']['fid/both/expression_fid']['mean']:.4g}"


def test_dualtalks_rows_are_in_the_published_units(report):
    rows = dualtalk_comparison(report)
    assert all(len(row) == len(rows[0]) for row in rows)
    ours, metrics = dict(zip(rows[0], rows[-1], strict=True)), report["metrics"]
    assert ours["FD jaw x 10^3"] == f"{1000 * metrics['dualtalk/fd/jaw']['mean']:.4g}"
    assert ours["SID expression"] == f"{metrics['dualtalk/sid/expression']['mean']:.4g}"


def test_markdown_tables_are_rectangular(report):
    text = markdown(report)
    widths = {}
    for i, block in enumerate(re.split(r"\n\n", text)):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        widths[i] = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert all(len(width) <= 1 for width in widths.values())
    assert "too \\| short" in text and "A note." in text and '"seeds"' in text


def test_the_page_needs_no_other_file_and_is_well_formed(report, scores):
    tags = Tags()
    text = page(report, scores.traces())
    tags.feed(text)
    assert tags.open == [] and tags.outside == []
    assert len(tags.pictures) == 6  # bars, distances, distributions, spectra, best and worst clip
    for picture in tags.pictures:
        kind, _, content = picture.partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert ElementTree.fromstring(base64.b64decode(content)).tag.endswith("svg")
    assert "first &amp; &lt;foremost&gt;" in text and "runs/&lt;x&gt;" in text


HOSTILE = "<script>alert('x')</script> & \"y\""


def test_a_record_name_cannot_run_a_script_in_the_report(report, scores):
    skipped = [{"name": HOSTILE, "reason": HOSTILE}]
    traces = {which: {**trace, "name": HOSTILE} for which, trace in scores.traces().items()}
    text = page({**report, "skipped": skipped, "notes": [HOSTILE]}, traces)
    tags = Tags()
    tags.feed(text)
    assert tags.open == [] and "script" not in tags.seen
    assert HOSTILE not in text and text.count("&lt;script&gt;") == 2 + 1 + 2 * len(traces)


def test_a_record_name_is_text_in_the_page_whatever_its_bytes(report, scores):
    text = page({**report, "skipped": [{"name": "a\x1b[31m\udce9", "reason": "r"}]}, scores.traces())
    assert r"a\x1b[31m\udce9" in text and text.encode("utf-8")


def test_a_record_name_cannot_run_a_script_in_the_page_of_a_store():
    values = {"min": 0.0, "max": 1.0, "mean": None, "std": 0.5}
    store = {
        "channels": {HOSTILE: values},
        "histograms": {},
        "splits": {"train": {"first": HOSTILE}},
        "speech": {},
        "alignment": {"offset_frames": None},
    }
    tags = Tags()
    text = store_page(store, f"# Store\n- {HOSTILE} is too short\n")
    tags.feed(text)
    assert tags.open == [] and tags.outside == [] and "script" not in tags.seen
    assert HOSTILE not in text and text.count("&lt;script&gt;") == 3


def test_a_cell_of_a_markdown_table_stays_in_its_cell():
    assert markdown_table([["a", "b"], ["x | y\nz", 2]]) == ["| a | b |", "|---|---|", "| x \\| y?z | 2 |"]


def test_the_same_report_gives_the_same_page(report, scores):
    assert page(report, scores.traces()) == page(report, scores.traces())


def test_three_files_are_written(tmp_path, report, scores):
    paths = write_report(tmp_path / "report.json", report, scores.traces())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]
    assert json.loads(paths["json"].read_text()) == report
    assert report_paths("x/clean.json")["markdown"].name == "clean.md"


def test_a_report_with_nothing_defined_can_be_drawn(report):
    empty = {
        **report,
        "metrics": {name: {**e, "mean": None, "interval": None} for name, e in report["metrics"].items()},
    }
    empty["pictures"] = {**report["pictures"], "spectra": {"frequencies_hz": [1.0]}}
    tags = Tags()
    tags.feed(page(empty, {}))
    assert len(tags.pictures) == 3
