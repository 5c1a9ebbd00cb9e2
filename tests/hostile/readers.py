"""All readers of files that users give, each with a good sample that is damaged."""

from hostile import layouts, motions, runs, stores
from hostile.reader import Reader

READERS: dict[str, Reader] = {**motions.READERS, **stores.READERS, **layouts.READERS, **runs.READERS}
