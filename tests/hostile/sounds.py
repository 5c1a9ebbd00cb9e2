"""Sound in every kind of container, and lists of recordings."""

from pathlib import Path

import av
import numpy as np
import soundfile
from hostile.reader import Reader

from unils_jax.audio import read_audio, read_sound
from unils_jax.inference.recordings import find_recordings

CODECS = {"m4a": "aac", "mkv": "pcm_s16le", "webm": "libopus", "avi": "pcm_s16le", "aac": "aac", "ts": "aac"}


def make_sounds(folder: Path) -> None:
    sound = (np.random.default_rng(0).standard_normal((8000, 2)) * 0.1).astype(np.float32)
    for suffix, subtype in (
        ("wav", "PCM_16"),
        ("aiff", "PCM_24"),
        ("au", "FLOAT"),
        ("w64", "PCM_16"),
        ("caf", "PCM_16"),
    ):
        soundfile.write(folder / f"a.{suffix}", sound[:1600], 16000, subtype=subtype)
    for suffix in ("flac", "ogg", "mp3"):
        soundfile.write(folder / f"a.{suffix}", sound, 16000)
    soundfile.write(folder / "b.wav", sound[:1600], 16000, subtype="FLOAT", format="WAVEX")
    for suffix, codec in CODECS.items():
        with av.open(str(folder / f"c.{suffix}"), "w") as container:
            stream = container.add_stream(codec, rate=48000, layout="mono")
            frame = av.AudioFrame.from_ndarray((sound[None, :, 0] * 32767).astype(np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = 48000, 0
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)


def read_sounds(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        read_sound(path).mixed()
        read_audio(path)


def make_list(folder: Path) -> None:
    (folder / "list.txt").write_text("# conversations\na.wav\nb_speaker1.wav\tb_speaker2.wav\nc.wav\n")


READERS = {
    "sound": Reader(make_sounds, read_sounds, apart=True),
    "list of recordings": Reader(make_list, lambda folder: find_recordings(folder / "list.txt")),
}
