"""From a source to a store: convert, report every hour, check."""
