"""Speaks lines with espeak-ng in a process that does nothing else; standard library alone.

The child of `engines.Espeak`, run as a file: espeak-ng is a program that is called here, through
the C interface of its library, and nothing else is loaded with it.

Standard input is JSON: voices (the first that exists is taken), rate, pitch, texts. Standard output
is a line of JSON with the rate and, for each text, the number of samples and the phonemes as (IPA,
first sample), then all samples as int16.
"""

import ctypes
import json
import sys

LIBRARY = "libespeak-ng.so.1"
# Of espeak-ng/speak_lib.h.
AUDIO_OUTPUT_SYNCHRONOUS = 2
PHONEME_EVENTS_IN_IPA = 1 | 2
RATE, PITCH = 1, 3
EVENT_END, EVENT_PHONEME = 0, 7
CHARACTERS_UTF8, POSITION_CHARACTER = 1, 1


class EventId(ctypes.Union):
    """What an event names."""

    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class Event(ctypes.Structure):
    """An event of espeak-ng's callback."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", EventId),
    ]


def main() -> None:
    """Speaks what standard input asks for."""
    asked = json.load(sys.stdin)
    library = ctypes.CDLL(LIBRARY)
    rate = library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, None, PHONEME_EVENTS_IN_IPA)
    if rate <= 0:
        sys.exit("espeak-ng does not start; is espeak-ng-data installed?")
    samples, phonemes, spoken = bytearray(), [], []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))
    def collect(wave, count, events):
        if wave:
            samples.extend(ctypes.string_at(wave, 2 * count))
        i = 0
        while events[i].type != EVENT_END:
            if events[i].type == EVENT_PHONEME:
                phonemes.append((events[i].id.string.decode("utf-8", "ignore"), events[i].sample))
            i += 1
        return 0

    library.espeak_SetSynthCallback(collect)
    if all(library.espeak_SetVoiceByName(voice.encode()) for voice in asked["voices"]):
        sys.exit(f"espeak-ng has no voice {asked['voices'][0]}")
    library.espeak_SetParameter(RATE, asked["rate"], 0)
    library.espeak_SetParameter(PITCH, asked["pitch"], 0)
    every = bytearray()
    for text in asked["texts"]:
        samples.clear()
        phonemes.clear()
        encoded = text.encode()
        library.espeak_Synth(encoded, len(encoded) + 1, 0, POSITION_CHARACTER, 0, CHARACTERS_UTF8, None, None)
        library.espeak_Synchronize()
        spoken.append((len(samples) // 2, list(phonemes)))
        every += samples
    sys.stdout.buffer.write(json.dumps({"rate": rate, "spoken": spoken}).encode() + b"\n" + every)


if __name__ == "__main__":
    main()
