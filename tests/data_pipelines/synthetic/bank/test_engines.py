"""The engines: what their answers become, and that the phones lie where the sound is."""

import shutil
import stat

import numpy as np
import pytest
from scipy.signal import butter, sosfiltfilt

from data_pipelines.phones import Phone, phone_class
from data_pipelines.synthetic.bank.engines import ENGINES, Flite, _espeak_phones, _flite_phones, missing
from data_pipelines.synthetic.bank.speakers import SPEAKERS
from unils_jax.errors import UserError

LACKING = missing()
needs_engines = pytest.mark.skipif(bool(LACKING), reason=LACKING)


def test_flites_list_becomes_phones_without_pauses():
    phones = _flite_phones("pau:0.2 m:0.3 ay:0.5 pau:0.6 f:0.7\n", 2.0, "my f")
    assert [phone.label for phone in phones] == ["m", "aɪ", "f"]
    np.testing.assert_allclose([phone[1:] for phone in phones], [(0.1, 0.15), (0.15, 0.25), (0.3, 0.35)])
    with pytest.raises(UserError, match="flite lists no phones for 'x'"):
        _flite_phones("Segmentation fault", 1.0, "x")


def test_a_voiceless_stop_takes_the_silence_before_its_burst():
    rate = 16000
    sound = np.sin(np.arange(rate) * 0.1).astype(np.float32)
    sound[round(0.40 * rate) : round(0.45 * rate)] = 0
    phonemes = [("ˈaː", 0), ("p", round(0.45 * rate)), ("i", round(0.5 * rate)), ("", round(0.9 * rate))]
    phones = _espeak_phones(sound, rate, phonemes)
    assert [phone.label for phone in phones] == ["a", "p", "i"]
    assert phones[0].end_s == phones[1].start_s == pytest.approx(0.40, abs=0.003)
    assert (phones[1].end_s, phones[2].end_s) == (0.5, 0.9)
    voiced = _espeak_phones(sound, rate, [("a", 0), ("b", round(0.45 * rate))])
    assert voiced[1].start_s == 0.45


def test_a_stop_does_not_begin_before_the_pause_that_it_follows():
    rate = 16000
    sound = np.sin(np.arange(rate) * 0.1).astype(np.float32)
    sound[round(0.40 * rate) : round(0.50 * rate)] = 0
    phonemes = [("a", 0), ("", round(0.46 * rate)), ("p", round(0.50 * rate)), ("i", round(0.55 * rate))]
    phones = _espeak_phones(sound, rate, phonemes)
    assert [phone.label for phone in phones] == ["a", "p", "i"]
    assert all(before.end_s <= after.start_s for before, after in zip(phones, phones[1:], strict=False))


def test_a_program_that_fails_is_named(tmp_path, monkeypatch):
    program = tmp_path / "flite"
    program.write_text("#!/bin/sh\necho out of paper >&2\nexit 3\n")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("flite") == str(program) and Flite().missing() == ""
    with pytest.raises(UserError, match=r"flite failed \(out of paper\)"):
        Flite().speak(SPEAKERS[0], ["yes"])
    program.unlink()
    assert Flite().missing() == "flite"
    with pytest.raises(UserError, match="flite does not run"):
        Flite().version()


@needs_engines
@pytest.mark.parametrize("voice", ["awb", "kal16", "f1", "m2"])
def test_phones_lie_where_the_sound_is(voice):
    speaker = next(s for s in SPEAKERS if s.voice == voice)
    said = ENGINES[speaker.engine].speak(
        speaker, ["papa sees a soft sofa" if speaker.engine == "flite" else "sassa pappa"]
    )[0]
    hiss = sosfiltfilt(butter(4, 4000, "highpass", fs=16000, output="sos"), said.samples)

    def level(track, phone: Phone, share: float = 0.5) -> float:
        # The middle of the phone, or its beginning, where a stop is closed.
        middle, half = phone.start_s + share * (phone.end_s - phone.start_s), 0.15 * (phone.end_s - phone.start_s)
        span = track[round((middle - half) * 16000) : round((middle + half) * 16000)]
        return 10 * np.log10(np.mean(span**2) + 1e-9)

    vowels = [level(said.samples, p) for p in said.phones if phone_class(p.label) == "vowel"]
    stops = [level(said.samples, p, 0.3) for p in said.phones if p.label == "p"]
    hissing = [level(hiss, p) for p in said.phones if p.label == "s"]
    others = [level(hiss, p) for p in said.phones if phone_class(p.label) == "vowel"]
    assert np.mean(vowels) - np.mean(stops) > 15 and min(hissing) > np.median(others) + 6
