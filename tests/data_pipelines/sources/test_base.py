"""Names without splits are divided in shares, and every split that can have one has a name."""

from collections import Counter

import pytest
from foreign_data import write_motion
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.sources.base import hashed_splits, parse_shares
from data_pipelines.sources.folder import FilesSource
from unils_jax.errors import UserError


def counts(number: int, shares: tuple[float, float, float] | None = None) -> tuple[int, int, int]:
    held = Counter(hashed_splits([f"r{i}" for i in range(number)], shares).values())
    return held["train"], held["val"], held["test"]


@pytest.mark.parametrize(
    ("number", "shares", "expected"),
    [
        (1, None, (1, 0, 0)),
        (2, None, (2, 0, 0)),
        (3, None, (1, 1, 1)),
        (25, None, (21, 2, 2)),
        (1, (0.8, 0.1, 0.1), (1, 0, 0)),
        (2, (0.8, 0.1, 0.1), (1, 1, 0)),
        (3, (0.8, 0.1, 0.1), (1, 1, 1)),
        (2, (0.5, 0.0, 0.5), (1, 0, 1)),
        (1, (0.0, 0.0, 1.0), (0, 0, 1)),
        (10, (0.5, 0.3, 0.2), (5, 3, 2)),
        (20, (1.0, 0.0, 0.0), (20, 0, 0)),
    ],
)
def test_names_are_divided_in_shares(number, shares, expected):
    assert counts(number, shares) == expected


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 20), st.integers(0, 20), st.integers(0, 20))
def test_no_split_with_a_share_is_empty_while_there_are_names(number, a, b, c):
    if a + b + c == 0:
        return
    shares = (a / (a + b + c), b / (a + b + c), c / (a + b + c))
    held = counts(number, shares)
    assert sum(held) == number
    wanted = sum(share > 0 for share in shares)
    assert sum(n > 0 for n in held) == min(wanted, number)
    assert all(abs(n - number * share) <= 2 for n, share in zip(held, shares, strict=True)) or number < 2 * wanted + 20


@pytest.mark.parametrize("text", ["0.8,0.1", "0.8,0.1,0.2", "a,b,c", "1.1,-0.1,0", "nan,0,1", "", "0.8 0.1 0.1"])
def test_shares_that_are_none_are_refused(text):
    with pytest.raises(UserError, match="three shares of train, val and test that sum to 1"):
        parse_shares(text)


def test_shares_of_a_folder_that_is_split_already_are_refused(tmp_path):
    write_motion(tmp_path / "train" / "a.npz", 1, 120, 1)
    with pytest.raises(UserError, match="has the folders train; leave --splits out"):
        FilesSource(tmp_path, "", (0.8, 0.1, 0.1)).entries()
    with pytest.raises(UserError, match="--split val is given"):
        FilesSource(tmp_path / "train", "val", (0.8, 0.1, 0.1)).entries()
