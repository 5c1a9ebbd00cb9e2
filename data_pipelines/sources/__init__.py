"""Published layouts in: entries, then one record at a time."""
