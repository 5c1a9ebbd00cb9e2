"""The jitted decode: sampling, program, slots, conversations and streams."""
