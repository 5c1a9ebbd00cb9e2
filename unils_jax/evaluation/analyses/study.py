"""The answers of a user study: preferences with intervals, and how far raters agree."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import binomtest

from unils_jax.errors import UserError, one_line

LEVEL = 0.95
MAX_BYTES = 4 << 20  # of a file of answers


@dataclass(frozen=True)
class Answers:
    """What one rater said in one study."""

    path: Path
    study: str  # its id
    systems: tuple[str, str]
    criteria: tuple[str, ...]
    rater: str
    chosen: dict[tuple[str, str], bool]  # by clip and criterion: whether system a was chosen
    checks_passed: int
    num_checks: int

    @property
    def attentive(self) -> bool:
        """Whether the rater preferred the moving face in every check."""
        return self.checks_passed == self.num_checks


def read_answers(folder: Path) -> list[Answers]:
    """Reads every .json file of a folder.

    Raises UserError, naming the files, where there is none, where one is broken or incomplete, and
    where a rater has answered a study twice.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise UserError(f"{folder} holds no .json file of answers; put there what the raters downloaded")
    problems, seen, found = [], {}, []
    for path in paths:
        try:
            answers = _read(path)
        except UserError as error:
            problems.append(f"{path.name}: {error}")
            continue
        # Names differ in case and spaces when the same person types them again.
        key = (answers.study, answers.rater.strip().casefold())
        if key in seen:
            problems.append(f"{path.name} and {seen[key]}: rater {answers.rater!r} has answered twice")
        seen.setdefault(key, path.name)
        found.append(answers)
    if problems:
        raise UserError(f"{folder}: {'; '.join(problems)}; take these files away, or let them be answered again")
    return found


def _read(path: Path) -> Answers:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"has more than {MAX_BYTES} bytes")
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != "unils-study-answers":
            raise UserError("is no file of answers")
        study, given = data["study"], data["answers"]
        systems, criteria = (str(study["systems"]["a"]), str(study["systems"]["b"])), tuple(study["criteria"])
        pairs = [answer for answer in given if answer["check"] is None]
        checks = [answer for answer in given if answer["check"] is not None]
        _check_complete(pairs, checks, study)
        for answer in given:
            _check_answer(answer, criteria)
        chosen = {
            (answer["clip"], name): answer[side] == "a" for answer in pairs for name, side in answer["choices"].items()
        }
        passed = sum(_passes(answer) for answer in checks)
        rater, identity = data["rater"].strip(), str(study["id"])
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"is no file of answers ({one_line(error, 80)})") from None
    if not rater:
        raise UserError("names no rater")
    return Answers(path, identity, systems, criteria, rater, chosen, passed, len(checks))


def _check_complete(pairs: list[dict[str, Any]], checks: list[dict[str, Any]], study: dict[str, Any]) -> None:
    answered = [answer["clip"] for answer in pairs]
    if twice := sorted({clip for clip in answered if answered.count(clip) > 1}):
        raise UserError(f"answers clip {twice[0]!r} twice")
    if odd := sorted(set(answered) ^ set(study["clips"])):
        raise UserError(f"answers {len(answered)} of {len(study['clips'])} pairs, see {odd[0]!r}")
    if len(checks) != study["num_checks"]:
        raise UserError(f"answers {len(checks)} of {study['num_checks']} attention checks")


def _check_answer(answer: dict[str, Any], criteria: Sequence[str]) -> None:
    shown = {"a", "b"} if answer["check"] is None else {"moving", "frozen"}
    if {answer["left"], answer["right"]} != shown:
        raise UserError(f"shows {answer['left']!r} and {answer['right']!r} at clip {answer['clip']!r}")
    if set(answer["choices"]) != set(criteria) or not set(answer["choices"].values()) <= {"left", "right"}:
        raise UserError(f"has not answered every criterion of clip {answer['clip']!r} with left or right")


def _passes(answer: dict[str, Any]) -> bool:
    """Decides whether the moving face was preferred by more than half of the criteria."""
    chosen = [answer[side] == "moving" for side in answer["choices"].values()]
    return 2 * sum(chosen) > len(chosen)


def analyse(answers: Sequence[Answers]) -> dict[str, Any]:
    """Returns the preferences of every study, and who was left out.

    Raters who failed an attention check are left out. Each criterion has the share of answers for
    system a, its 95 % interval by Wilson, which takes all answers as independent, the p-value of
    the exact two-sided binomial test against one half, and Krippendorff's alpha of the raters.
    """
    studies = defaultdict(list)
    for one in answers:
        studies[one.study].append(one)
    return {"level": LEVEL, "studies": [_study(studies[name]) for name in sorted(studies)]}


def _study(answers: Sequence[Answers]) -> dict[str, Any]:
    first, kept = answers[0], [one for one in answers if one.attentive]
    if odd := [o.path.name for o in answers if (o.systems, o.criteria) != (first.systems, first.criteria)]:
        raise UserError(f"{odd[0]} and {first.path.name} are of one study with different systems or criteria")
    out = [
        {"rater": one.rater, "file": one.path.name, "checks": [one.checks_passed, one.num_checks]}
        for one in answers
        if not one.attentive
    ]
    return {
        "id": first.study,
        "systems": list(first.systems),
        "raters": len(kept),
        "left_out": out,
        "criteria": {name: _preference(kept, name) for name in first.criteria} if kept else {},
    }


def _preference(answers: Sequence[Answers], criterion: str) -> dict[str, Any]:
    clips = sorted({clip for one in answers for clip, name in one.chosen if name == criterion})
    chosen = np.array([[one.chosen[clip, criterion] for clip in clips] for one in answers], np.float64)
    wins, count = int(chosen.sum()), chosen.size
    test = binomtest(wins, count)
    interval = test.proportion_ci(LEVEL, method="wilson")
    return {
        "answers": count,
        "for_a": wins,
        "share": wins / count,
        "interval": [float(interval.low), float(interval.high)],
        "p_value": float(test.pvalue),
        "alpha": krippendorff_alpha(chosen),
    }


def krippendorff_alpha(values: Float[np.ndarray, "R U"]) -> float | None:
    """Returns Krippendorff's alpha for nominal values of raters on units; NaN is no answer.

    1 is agreement, 0 what chance gives, below 0 systematic disagreement. None where no unit has
    two answers or all answers are the same, for which it is not defined.
    """
    units = [unit[np.isfinite(unit)] for unit in values.T]
    units = [unit for unit in units if len(unit) > 1]
    if not units:
        return None
    labels, totals = np.unique(np.concatenate(units), return_counts=True)
    total = totals.sum()
    expected = (total**2 - (totals**2).sum()) / (total * (total - 1))
    if len(labels) < 2:
        return None
    pairs = sum(
        (len(unit) ** 2 - (np.unique(unit, return_counts=True)[1] ** 2).sum()) / (len(unit) - 1) for unit in units
    )
    return float(1 - pairs / total / expected)


def table(report: dict[str, Any]) -> list[list[str]]:
    """Returns the report's rows: a study a row, the share for its first system by criterion."""
    criteria = list(dict.fromkeys(name for study in report["studies"] for name in study["criteria"]))
    rows = [["preferred", "over", "raters", *criteria, "alpha"]]
    for study in report["studies"]:
        cells = [_cell(study["criteria"].get(name)) for name in criteria]
        alphas = [value["alpha"] for value in study["criteria"].values() if value["alpha"] is not None]
        alpha = f"{np.mean(alphas):.2f}" if alphas else "-"
        rows.append([*study["systems"], str(study["raters"]), *cells, alpha])
    return rows


def _cell(preference: dict[str, Any] | None) -> str:
    if preference is None:
        return "-"
    low, high = preference["interval"]
    return f"{100 * preference['share']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
