"""The sub-commands of `unils`, one short file each; only here are data and model joined."""
