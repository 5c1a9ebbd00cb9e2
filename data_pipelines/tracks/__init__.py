"""The files of face trackers in: any names of arrays, kinds of rotations, and frame rates."""
