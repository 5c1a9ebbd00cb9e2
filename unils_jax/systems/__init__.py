"""The published systems, as data behind one interface."""
