"""Several stores as one: windows drawn from each by its weight, statistics merged."""

import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from data_pipelines.statistics import ChannelStatistics
from data_pipelines.store.reader import Store
from unils_jax.errors import UserError

# Motion kept in memory by each process: 1.7 hours of one person in float16. The page cache holds
# the rest.
CACHE_BYTES = 32 << 20


def parse_stores(store: str, stores: Sequence[str]) -> list[tuple[str, float]]:
    """Reads paths and weights of a config's `data.store` and `data.stores`.

    `data.store` is one path, `data.stores` holds `PATH` or `PATH=WEIGHT` each. Raises UserError
    unless one of the two is given, and for a weight that is not positive.
    """
    if bool(store) == bool(stores):
        raise UserError("set data.store to one store, or data.stores to several PATH=WEIGHT, and not both")
    if store:
        return [(store, 1.0)]
    chosen, problems = [], []
    for text in stores:
        path, equals, number = text.rpartition("=")
        path, number = (path, number) if equals else (text, "1")
        try:
            weight = float(number)
        except ValueError:
            weight = np.nan
        if not (path and 0 < weight < np.inf):
            problems.append(f"data.stores must hold PATH=WEIGHT with a positive weight, got {text!r}")
        chosen.append((path, weight))
    if problems:
        raise UserError("; ".join(problems))
    return chosen


class Mixture:
    """Opened stores with their weights.

    Raises UserError where they do not hold motion of one basis.
    """

    def __init__(self, stores: str | os.PathLike | Sequence[tuple[str, float]], *, cache_bytes: int = CACHE_BYTES):
        pairs = [(stores, 1.0)] if isinstance(stores, str | os.PathLike) else list(stores)
        if not pairs:
            raise UserError("a mixture needs at least one store")
        share = cache_bytes // len(pairs)
        self.stores = [Store(path, cache_bytes=share) for path, _ in pairs]
        self.weights = [float(weight) for _, weight in pairs]
        if any(not 0 < weight < np.inf for weight in self.weights):
            raise UserError(f"weights of stores must be positive, got {self.weights}")
        bases = {store.expression_basis: str(store.path) for store in self.stores}
        if len(bases) > 1:
            listed = ", ".join(f"{path} is of the {basis!r} basis" for basis, path in sorted(bases.items()))
            raise UserError(f"stores of a mixture must share one expression basis: {listed}; leave one out")

    @property
    def expression_basis(self) -> str:
        """The meaning of the 100 expression channels, the same in all of them."""
        return self.stores[0].expression_basis

    def statistics(self, *, centred: bool = True) -> tuple[Float32[np.ndarray, "108"], Float32[np.ndarray, "108"]]:
        """Returns mean and standard deviation per channel over the training frames of all stores.

        Each frame counts once: a store drawn twice as often keeps the statistics of its frames. The
        head rotation is `centred` or as it was. Raises UserError where no store has motion to train
        on.
        """
        merged = ChannelStatistics.zero()
        for store in self.stores:
            merged = merged.merge(store.channel_statistics(centred=centred))
        return merged.normalisation(", ".join(str(store.path) for store in self.stores))
