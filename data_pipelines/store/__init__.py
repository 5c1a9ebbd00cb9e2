"""The format on disk: pieces, shards, index; writing, reading, fetching."""
