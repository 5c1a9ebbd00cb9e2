"""Everything between a disk and a batch: records, the synthetic set, the store, windows and the loader."""
