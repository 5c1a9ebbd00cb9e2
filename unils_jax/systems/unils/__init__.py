"""UniLS: its training stages and the layout of its release files."""
