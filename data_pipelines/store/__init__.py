"""The format on disk: chunks, shards, index; writing, reading, fetching."""
