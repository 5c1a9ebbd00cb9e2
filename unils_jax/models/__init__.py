"""The models: quantiser, codec, prior, audio encoders, FLAME."""
