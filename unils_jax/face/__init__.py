"""From FLAME parameters to vertices: FLAME, its file and the stand-in head."""
