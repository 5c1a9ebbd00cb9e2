"""Everything between a disk and a batch: records, synthetic set, store, windows, loader."""
