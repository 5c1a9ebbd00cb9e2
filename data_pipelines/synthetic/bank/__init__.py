"""A bank of utterances with phone times, made by speech engines that are called as programs."""
