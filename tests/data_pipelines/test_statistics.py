"""Channel statistics: equal to NumPy's in float64, however the frames are parted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.statistics import ChannelStatistics
from unils_jax.errors import UserError


def frames(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    # A mean that is large beside the deviation loses digits where squares are summed naively.
    return (rng.standard_normal((count, 108)) * 0.1 + rng.uniform(-50, 50, 108)).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 3000), max_size=6), reverse=st.booleans())
def test_any_parting_gives_the_statistics_of_the_whole(cuts, reverse):
    whole = frames(3000)
    edges = [0, *sorted(cuts), 3000]
    parts = [ChannelStatistics.zero().add(whole[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
    merged = ChannelStatistics.zero()
    for part in reversed(parts) if reverse else parts:
        merged = merged.merge(part)
    wide = whole.astype(np.float64)
    np.testing.assert_allclose(merged.mean, wide.mean(axis=0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(merged.std, wide.std(axis=0), rtol=0, atol=1e-6)
    assert (merged.count == 3000).all()


def test_channels_that_are_not_observed_do_not_count():
    observed = np.arange(108) % 2 == 0
    both = ChannelStatistics.zero().add(frames(50)).add(frames(70, 1), observed)
    np.testing.assert_array_equal(both.count, np.where(observed, 120, 50))
    alone = ChannelStatistics.zero().add(frames(50))
    np.testing.assert_array_equal(both.mean[~observed], alone.mean[~observed])
    np.testing.assert_array_equal(both.std[~observed], alone.std[~observed])
    joined = np.concatenate([frames(50), frames(70, 1)]).astype(np.float64)[:, observed]
    np.testing.assert_allclose(both.std[observed], joined.std(axis=0), rtol=1e-12)


def test_json_keeps_them_exactly():
    statistics = ChannelStatistics.zero().add(frames(33))
    again = ChannelStatistics.from_json(statistics.to_json())
    for name in ("count", "mean", "m2"):
        np.testing.assert_array_equal(getattr(again, name), getattr(statistics, name))


@pytest.mark.parametrize("change", [{"mean": [0.0] * 107}, {"m2": None}, {"mean": [float("nan")] * 108}])
def test_damaged_statistics_are_refused(change):
    with pytest.raises(UserError, match="statistics"):
        ChannelStatistics.from_json(ChannelStatistics.zero().to_json() | change)


def test_no_frame_is_no_normalisation():
    with pytest.raises(UserError, match="data/x: no motion in the train split"):
        ChannelStatistics.zero().normalisation("data/x")
