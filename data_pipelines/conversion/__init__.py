"""From a source to a store: convert, account for every hour, check."""
