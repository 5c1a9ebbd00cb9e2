"""The format on disk: chunks, shards, index; writing, reading, fetching."""

from data_pipelines.store.reader import Store, write_store

__all__ = ["Store", "write_store"]
