"""The synthetic conversation: repeatable, plausible, and with the imbalance that UniLS exists for in it."""

import argparse
import json
import time

import numpy as np
import pytest
from scipy.signal import welch

from data_pipelines.behaviour import NEUTRAL
from data_pipelines.conversation import SynthConfig, plan_conversation
from data_pipelines.schema import Record, validate
from data_pipelines.store import Store
from data_pipelines.synthetic import make_conversation, make_records, settings, splits
from unils_jax.audio import frame_loudness
from unils_jax.commands import data as data_command
from unils_jax.errors import UserError
from unils_jax.motion import EXPRESSION, EYES, HEAD, JAW, STANDIN_SHAPES, center_head

CONFIG = SynthConfig()
NUM_CONVERSATIONS = 9
NUM_TRAIN = 7


@pytest.fixture(scope="module")
def conversations() -> list[Record]:
    return [make_conversation(CONFIG, 0, index) for index in range(NUM_CONVERSATIONS)]


def people(conversations):
    """(events, motion [T, 108] float64, audio [N] float32, mask [T], other's audio, minutes) of every person."""
    for record in conversations:
        audio = record.audio / np.float32(32768)
        for p in range(2):
            motion = record.motion[p].astype(np.float64)
            yield record.events["people"][p], motion, audio[p], record.speech_mask[p], audio[1 - p]


def channel(name: str) -> int:
    return list(STANDIN_SHAPES).index(name)


# Repeatable.


def test_one_seed_repeats_bit_for_bit(conversations):
    again = make_conversation(CONFIG, 0, 3)
    for name in ("motion", "audio", "speech_mask"):
        np.testing.assert_array_equal(getattr(again, name), getattr(conversations[3], name))
    assert again.events == conversations[3].events


def test_other_seeds_and_other_indices_differ(conversations):
    other = make_conversation(CONFIG, 1, 3)
    for record in (other, conversations[4]):
        assert (record.motion != conversations[3].motion).any() and (record.audio != conversations[3].audio).any()


def test_records_are_valid_and_events_survive_json(conversations):
    for record in conversations:
        validate(record)
        assert json.loads(json.dumps(record.events)) == record.events
    assert conversations[0].motion.dtype == np.float16 and conversations[0].audio.dtype == np.int16
    assert conversations[0].motion.shape == (2, 3000, 108) and conversations[0].audio.shape == (2, 3000 * 640)


def test_an_hour_takes_about_a_minute():
    started = time.process_time()
    make_conversation(CONFIG, 0, 100)
    # 0.3 s on an idle core, 2 s would be a minute for an hour; process time, so that neighbours do not count.
    assert time.process_time() - started < 2


# Turns.


@pytest.fixture(scope="module")
def long_plan():
    config = SynthConfig(minutes=60.0)
    return config, plan_conversation(config, np.random.default_rng(0))


def test_turn_lengths_and_gaps_are_as_configured(long_plan):
    config, plan = long_plan
    lengths = np.array([turn.end_s - turn.start_s for turn in plan.turns])
    assert 3.5 < np.median(lengths) < 4.8
    assert lengths[:-1].min() >= config.turn_s[0] - 1e-9 and lengths.max() <= config.turn_s[1] + 1e-9
    gaps = np.array([b.start_s - a.end_s for a, b in zip(plan.turns, plan.turns[1:], strict=False)])
    assert 0.1 < np.median(gaps) < 0.3
    assert 0.15 < np.mean(gaps < 0) < 0.35
    assert all(a.person != b.person for a, b in zip(plan.turns, plan.turns[1:], strict=False))


def test_backchannels_come_as_often_as_configured_and_not_in_own_turns(long_plan):
    _, plan = long_plan
    backchannels = [(p, phrase) for p in range(2) for phrase in plan.phrases[p] if phrase.backchannel]
    assert 4 < len(backchannels) / 60 < 6
    for person, phrase in backchannels:
        assert 0.3 <= phrase.end_s - phrase.start_s <= 0.6
        assert not any(t.person == person and t.start_s < phrase.end_s and phrase.start_s < t.end_s for t in plan.turns)


def test_nobody_talks_over_themselves(long_plan):
    _, plan = long_plan
    for phrases in plan.phrases:
        assert all(a.end_s <= b.start_s for a, b in zip(phrases, phrases[1:], strict=False))


def test_both_people_talk_for_about_half_the_time(conversations):
    share = np.mean([record.speech_mask for record in conversations])
    assert 0.4 < share < 0.6
    assert np.mean([record.speech_mask.all(axis=0).mean() for record in conversations]) < 0.12


# Voice.


def test_the_mask_is_where_the_voice_is(conversations):
    for _, _, audio, mask, _ in people(conversations):
        loudness = frame_loudness(audio)
        assert np.median(loudness[mask]) > np.median(loudness[~mask]) + 15
        assert np.percentile(loudness[~mask], 90) < -40 and loudness.min() > -56
        assert np.abs(audio).max() < 0.999


def test_a_little_of_the_other_voice_is_in_the_own_track(conversations):
    gains = []
    for _, _, audio, mask, other in people(conversations):
        listening = np.repeat(~mask, 640)
        gains.append(np.dot(audio[listening], other[listening]) / np.dot(other[listening], other[listening]))
    assert 20 * np.log10(np.mean(gains)) == pytest.approx(CONFIG.crosstalk_db, abs=1)


def test_pitch_is_that_of_the_person(conversations):
    for events, _, audio, mask, _ in list(people(conversations))[:6]:
        voiced = audio[: 640 * 3000][np.repeat(mask, 640)]
        spectrum = np.abs(np.fft.rfft(voiced[: 2**18])) ** 2
        correlation = np.fft.irfft(spectrum)
        lags = np.arange(16000 // 280, 16000 // 75)
        heard = 16000 / lags[np.argmax(correlation[lags])]
        # Phrase declination lowers it, accents raise it.
        assert 0.8 < heard / events["pitch_hz"] < 1.2


# Motion of one's own speech.


def test_the_jaw_follows_own_loudness_and_leads_it(conversations):
    by_lag = {lag: [] for lag in range(-2, 6)}
    for _, motion, audio, mask, _ in people(conversations):
        loudness = frame_loudness(audio)
        for lag, found in by_lag.items():
            found.append(np.corrcoef(np.roll(motion[:, 103], lag)[mask], loudness[mask])[0, 1])
    mean = {lag: np.mean(found) for lag, found in by_lag.items()}
    assert mean[0] > 0.65 and max(mean.values()) > 0.8
    # The jaw is 40 to 80 ms early: shifted by one or two frames it fits best.
    assert max(mean, key=mean.get) in (1, 2)


def test_lips_close_on_bilabials_and_in_silence(conversations):
    for events, motion, _, mask, _ in people(conversations):
        jaw, press = motion[:, 103], motion[:, channel("lip_press")]
        labial = [s for s in events["syllables"] if s[3] == "bilabial"]
        frames = np.array([int(((s[0] + s[1]) / 2 - CONFIG.lead_s) * 25) for s in labial])
        assert press[frames].mean() > press[mask].mean() + 0.15
        assert jaw[frames].mean() < 0.8 * jaw[mask].mean()
        assert jaw[~mask].mean() < 0.5 * jaw[mask].mean()


# Motion of nobody's audio.


def test_blinks_come_as_often_as_the_person_blinks(conversations):
    ratios, seen = [], []
    for events, motion, *_ in people(conversations):
        ratios.append(len(events["blinks"]) / (events["blinks_per_min"] * CONFIG.minutes))
        lid = motion[:, channel("blink_left")]
        closed = lid > 0.4 * STANDIN_SHAPES["blink_left"]
        seen.append((closed[1:] & ~closed[:-1]).sum() / max(len(events["blinks"]), 1))
        starts = np.array([blink[0] for blink in events["blinks"]])
        assert np.diff(starts).min() > CONFIG.blink_pause_s
        assert all(0.15 <= blink[1] <= 0.30 for blink in events["blinks"])
        # Eyes rest open.
        assert abs(np.median(lid)) < 0.4
    assert np.mean(ratios) == pytest.approx(1, abs=0.12)
    assert np.mean(seen) == pytest.approx(1, abs=0.08)


def test_the_head_sways_with_a_spectrum_falling_as_one_over_f_squared(conversations):
    head = np.stack([center_head(record.motion) for record in conversations])[..., HEAD].astype(np.float64)
    frequency, power = welch(head, 25, nperseg=500, axis=2)
    band = (frequency > 0.3) & (frequency < 3)
    for axis in range(3):
        slope, _ = np.polyfit(np.log(frequency[band]), np.log(power.mean(axis=(0, 1))[band, axis]), 1)
        assert -3 < slope < -1.6


def test_gaze_rests_on_the_partner_more_while_listening(conversations):
    at_partner = {True: [], False: []}
    for events, _, _, mask, _ in people(conversations):
        for start, yaw, pitch in events["gazes"]:
            at_partner[bool(mask[min(int(start * 25), len(mask) - 1)])].append(max(abs(yaw), abs(pitch)) < 0.12)
    assert np.mean(at_partner[False]) > np.mean(at_partner[True]) + 0.1


# Motion of listening.


def test_nods_answer_the_other_s_phrases_with_the_configured_chance(conversations):
    answered, phrases = 0, 0
    for record in conversations:
        for p in range(2):
            own, other = (record.events["people"][q]["phrases"] for q in (p, 1 - p))
            nods = [nod[0] for nod in record.events["people"][p]["answer_nods"]]
            ends = [
                end
                for _, end, _, backchannel in other
                if not backchannel and not any(start < end + 0.3 and end < stop for start, stop, *_ in own)
            ]
            phrases += len(ends)
            answered += len(nods)
            for nod in nods:
                assert any(0.299 <= nod - end <= 0.801 for end in ends)
    assert answered / phrases == pytest.approx(CONFIG.nod_probability, abs=0.08)


def test_nods_move_the_head_up_and_down(conversations):
    """Head pitch has more power at 2 to 4 Hz in the second after a nod began than elsewhere."""
    nodding, still = [], []
    for events, motion, *_ in people(conversations):
        speed = np.abs(np.diff(motion[:, 100]))
        during = np.zeros(len(speed), bool)
        for start, cycles, rate_hz, _ in events["answer_nods"]:
            during[int(start * 25) : int((start + cycles / rate_hz) * 25)] = True
        nodding.append(speed[during].mean() if during.any() else np.nan)
        still.append(speed[~during].mean())
    assert np.nanmean(nodding) > 2 * np.mean(still)


# The imbalance.


def log_mel(audio: np.ndarray, num_mels: int = 16) -> np.ndarray:
    """A plain log-mel spectrogram `[T, num_mels]`, one window of 40 ms per frame."""
    spectrum = np.abs(np.fft.rfft(audio.reshape(-1, 640) * np.hanning(640), axis=1)) ** 2
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), num_mels + 2) / 2595) - 1)
    hz, (low, middle, high) = np.fft.rfftfreq(640, 1 / 16000)[:, None], (edges[:-2], edges[1:-1], edges[2:])
    triangles = np.clip(np.minimum((hz - low) / (middle - low), (high - hz) / (high - middle)), 0, None)
    return np.log(spectrum @ triangles + 1e-5)


def windowed(features: np.ndarray, reach: int = 5) -> np.ndarray:
    padded = np.pad(features, ((reach, reach), (0, 0)), mode="edge")
    return np.concatenate([padded[i : i + len(features)] for i in range(2 * reach + 1)], axis=1)


def explained(train, test) -> float:
    """Share of the test targets' variance that ridge regression on the training set explains."""
    (x, y), (x_test, y_test) = train, test
    mean, std = x.mean(axis=0), x.std(axis=0)
    x, x_test, y_mean = (x - mean) / std, (x_test - mean) / std, y.mean(axis=0)
    weights = np.linalg.solve(x.T @ x + 100 * np.eye(x.shape[1]), x.T @ (y - y_mean))
    error = y_test - x_test @ weights - y_mean
    return 1 - (error**2).sum() / ((y_test - y_test.mean(axis=0)) ** 2).sum()


@pytest.fixture(scope="module")
def regression(conversations):
    """`regression(speaking, channels)`: explained variance on held-out people, from both tracks' log-mels."""
    rows = []
    for _, motion, audio, mask, other in people(conversations):
        features = windowed(np.concatenate([log_mel(audio), log_mel(other)], axis=1))
        rows.append((features, motion - motion.mean(axis=0), mask))

    def run(speaking: bool, channels: slice) -> float:
        sets = []
        for part in (rows[: 2 * NUM_TRAIN], rows[2 * NUM_TRAIN :]):
            chosen = [(x[mask == speaking], y[mask == speaking][:, channels]) for x, y, mask in part]
            sets.append(tuple(np.concatenate(arrays) for arrays in zip(*chosen, strict=True)))
        return explained(*sets)

    return run


def test_audio_explains_the_talker_s_jaw(regression):
    assert regression(True, JAW) > 0.7


def test_audio_explains_the_talker_s_lips(regression):
    assert regression(True, slice(channel("lip_pucker"), channel("lip_pucker") + 1)) > 0.4


def test_audio_does_not_explain_the_listener_s_expression(regression):
    assert regression(False, EXPRESSION) < 0.1
    # The same measure does find the talker's expression, so that it is no blind eye.
    assert regression(True, EXPRESSION) > 0.15


def test_audio_explains_neither_head_nor_eyes(regression):
    for channels in (HEAD, EYES):
        assert regression(True, channels) < 0.1 and regression(False, channels) < 0.1


# Scale.


def test_scales_are_those_of_tracked_data(conversations):
    motion = np.stack([center_head(record.motion) for record in conversations]).astype(np.float64).reshape(-1, 108)
    std = motion.std(axis=0)
    for channels, expected in ((slice(0, 10), 1), (slice(10, 30), 0.5), (slice(30, 60), 0.3), (slice(60, 100), 0.15)):
        assert std[channels].mean() == pytest.approx(expected, rel=0.25)
    np.testing.assert_allclose(std[HEAD], [0.12, 0.17, 0.12], rtol=0.25)
    np.testing.assert_allclose(std[EYES], 0.145, rtol=0.35)
    assert motion[:, 103].mean() == pytest.approx(0.075, abs=0.01)
    assert std[103] == pytest.approx(0.058, abs=0.008)
    # A neutral face is not zero where the basis is anonymous.
    assert np.sqrt(np.mean((NEUTRAL[60:] / 0.15) ** 2)) == pytest.approx(1, abs=0.35)


def test_the_expression_is_mostly_of_low_rank(conversations):
    frames = np.concatenate([m - m.mean(axis=0) for _, m, *_ in people(conversations)])[:, EXPRESSION]
    frames = frames[:, len(STANDIN_SHAPES) :]
    variances = np.linalg.eigvalsh(np.cov(frames.T / frames.std(axis=0)[:, None]))[::-1]
    assert variances[:13].sum() > 0.9 * variances.sum()


# Settings, splits and the command.


def test_bad_settings_are_all_named_at_once():
    with pytest.raises(UserError) as error:
        SynthConfig(minutes=0.0, nod_probability=1.5, blink_s=(0.3, 0.1), backchannels_per_min=-1.0)
    for name in ("minutes", "nod_probability", "blink_s", "backchannels_per_min"):
        assert name in str(error.value)
    with pytest.raises(UserError, match="seed must not be negative"):
        make_conversation(CONFIG, -1, 0)


@pytest.mark.parametrize("count, sizes", [(3, (1, 1, 1)), (10, (8, 1, 1)), (60, (48, 6, 6))])
def test_splits_share_no_conversation_and_miss_none(count, sizes):
    parts = splits(count)
    assert tuple(len(numbers) for numbers in parts.values()) == sizes
    assert sorted(sum(parts.values(), [])) == list(range(count))


def test_a_set_holds_its_conversations_in_their_splits():
    config = SynthConfig(minutes=0.2)
    made = list(make_records(config, 5, 3))
    assert [split for split, _ in made] == ["train", "val", "test"]
    np.testing.assert_array_equal(made[1][1].motion, make_conversation(config, 5, 1).motion)
    assert settings(config, 5, 3) != settings(SynthConfig(minutes=0.2, nod_probability=0.5), 5, 3)


def run_command(*flags: str) -> None:
    parser = argparse.ArgumentParser()
    data_command.add_arguments(parser)
    data_command.run(parser.parse_args(["synth", *flags]))


def test_the_command_makes_a_store_once(tmp_path, capsys):
    flags = ("--out", str(tmp_path / "s"), "--conversations", "3", "--minutes", "0.2", "--seed", "4")
    run_command(*flags)
    assert "3 conversations" in capsys.readouterr().out
    store = Store(tmp_path / "s")
    assert [store.lengths(split) for split in ("train", "val", "test")] == [[300]] * 3
    before = (tmp_path / "s" / "manifest.json").stat().st_mtime_ns
    run_command(*flags)
    out = capsys.readouterr().out
    assert "already there" in out and out.count("\n") == 1
    assert (tmp_path / "s" / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="made with other settings"):
        run_command(*flags[:-1], "5")


def test_the_command_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(UserError, match="conversations must be at least 3"):
        run_command("--out", str(tmp_path / "s"), "--conversations", "2")
    with pytest.raises(UserError, match="minutes must be in"):
        run_command("--out", str(tmp_path / "s"), "--minutes", "nan")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="already exists and is not empty"):
        run_command("--out", str(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt"]
