"""The bank: made once, the same bytes however it is made, and apart for each split."""

import multiprocessing
import shutil

import fake_engine
import numpy as np
import pytest
from fake_engine import FakeEngine

from data_pipelines.phones import phone_tracks
from data_pipelines.synthetic.bank.bank import LEVEL_DB, MARGIN_S, WORDS, Bank
from data_pipelines.synthetic.bank.engines import ENGINES, missing
from data_pipelines.synthetic.bank.speakers import SPEAKERS
from data_pipelines.synthetic.bank.words import LANGUAGES, sentence, split_of
from data_pipelines.synthetic.conversation import SynthConfig
from data_pipelines.synthetic.dataset import make_records
from unils_jax.errors import UserError
from unils_jax.motion import STANDIN_SHAPES

LACKING = missing()
needs_engines = pytest.mark.skipif(bool(LACKING), reason=LACKING)


def fake_bank(folder, engine: FakeEngine | None = None, **settings) -> Bank:
    return Bank(folder, speakers=fake_engine.SPEAKERS, engines={"fake": engine or FakeEngine()}, **settings)


def contents(bank: Bank) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in bank.folder.iterdir()}


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> Bank:
    made = fake_bank(tmp_path_factory.mktemp("bank"))
    made.make()
    return made


def test_one_seed_gives_the_same_bytes_and_another_other_ones(bank, tmp_path):
    again, other = fake_bank(tmp_path), fake_bank(tmp_path, seed=1)
    again.make()
    other.make()
    assert contents(again) == contents(bank) and len(contents(bank)) == len(fake_engine.SPEAKERS)
    assert again.folder != other.folder and contents(other) != contents(bank)


def test_another_version_of_an_engine_is_another_bank(tmp_path):
    assert fake_bank(tmp_path).folder != fake_bank(tmp_path, FakeEngine(number="2")).folder


def test_what_was_interrupted_goes_on(bank, tmp_path):
    broken = fake_bank(tmp_path, FakeEngine(fails_at=4))
    with pytest.raises(UserError, match="fake failed"):
        broken.make()
    done = {path.name: path.stat().st_mtime_ns for path in broken.folder.iterdir()}
    assert 0 < len(done) < len(fake_engine.SPEAKERS)
    engine = FakeEngine()
    whole = fake_bank(tmp_path, engine)
    whole.make()
    assert engine.calls == len(fake_engine.SPEAKERS) - len(done)
    assert {name: (whole.folder / name).stat().st_mtime_ns for name in done} == done
    assert contents(whole) == contents(bank)
    whole.make()
    assert engine.calls == len(fake_engine.SPEAKERS) - len(done)


def make(folder) -> None:
    fake_bank(folder).make()


@pytest.mark.slow
def test_two_processes_may_make_one_bank(bank, tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=make, args=(tmp_path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert contents(fake_bank(tmp_path)) == contents(bank)


def test_progress_is_told_to_the_end(tmp_path):
    shares = []

    class Watching:
        def __enter__(self):
            return lambda hours, share: shares.append((hours, share))

        def __exit__(self, *_):
            shares.append("closed")

    fake_bank(tmp_path, progress=Watching).make()
    assert shares[-1] == "closed" and shares[-2][1] == 1 and shares[-2][0] > 0
    assert len(shares) == len(fake_engine.SPEAKERS) + 1


def test_utterances_have_one_level_and_phones_within_their_margins(bank):
    for number in range(len(bank.speakers)):
        utterances = bank.utterances(number)
        assert [utterance.short for utterance in utterances] == [count == 0 for count in WORDS]
        for said in utterances:
            inner = said.samples[round(MARGIN_S * 16000) : -round(MARGIN_S * 16000)]
            assert 10 * np.log10(np.mean(inner**2)) == pytest.approx(LEVEL_DB, abs=0.5)
            assert said.phones[0].start_s == pytest.approx(MARGIN_S, abs=1e-3)
            assert said.phones[-1].end_s == pytest.approx(said.length_s - MARGIN_S, abs=1e-3)
            assert len(said.loudness) == -(-len(said.samples) // 160)


def test_no_text_is_in_two_splits(bank):
    texts = {split: set() for split in ("train", "val", "test")}
    for number, speaker in enumerate(bank.speakers):
        texts[speaker.split] |= {utterance.text for utterance in bank.utterances(number)}
    assert all(split_of(text) == split for split, said in texts.items() for text in said)
    assert not texts["train"] & texts["test"] and not texts["val"] & texts["test"]


def test_a_damaged_file_is_named(bank, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(bank.folder.parent, folder)
    copy = fake_bank(folder)
    path = next(iter(sorted(copy.folder.iterdir())))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=path.name):
        copy.utterances(0)


def test_a_missing_engine_is_named_with_the_way_to_get_it(tmp_path):
    with pytest.raises(UserError, match="fake not found; get the speech engines with `apt-get install flite espeak-ng"):
        fake_bank(tmp_path, FakeEngine(absent=True))
    with pytest.raises(UserError, match="seed must not be negative, got -1"):
        fake_bank(tmp_path, seed=-1)


def test_the_speakers_of_the_test_split_have_voices_of_their_own():
    voices = {split: {(s.engine, s.voice) for s in SPEAKERS if s.split == split} for split in ("train", "val", "test")}
    assert not voices["test"] & (voices["train"] | voices["val"])
    assert len(SPEAKERS) == len({s.name for s in SPEAKERS}) == 48
    assert all(sum(s.split == split for s in SPEAKERS) % 2 == 0 for split in voices)
    assert {s.language for s in SPEAKERS} == set(LANGUAGES) and {s.engine for s in SPEAKERS} == set(ENGINES)
    assert {s.engine for s in SPEAKERS if s.split == "test"} == set(ENGINES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_have_the_length_and_the_split_that_are_asked_for(language):
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for count in (1, 5, 12):
            text = sentence(language, split, count, rng)
            assert split_of(text) == split and count <= len(text.split()) <= count + 6
        assert split_of(sentence(language, split, 0, rng)) == split


@needs_engines
@pytest.mark.parametrize("number", [0, 27, 28, 47])
def test_speakers_speak_the_same_again(number, tmp_path):
    speaker = SPEAKERS[number]
    rng = np.random.default_rng(0)
    texts = [sentence(speaker.language, speaker.split, count, rng) for count in (0, 6)]
    first, again = (ENGINES[speaker.engine].speak(speaker, texts) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.samples, other.samples)
        assert one.phones == other.phones and len(one.phones) > 2


@needs_engines
@pytest.mark.slow
def test_a_bank_of_the_engines_repeats_and_its_faces_follow_the_phones(tmp_path):
    speakers = [
        next(s for s in SPEAKERS if s.split == split and s.engine == engine)
        for split in ("train", "val", "test")
        for engine in ENGINES
    ]
    banks = [Bank(tmp_path / name, speakers=speakers) for name in ("a", "b")]
    for made in banks:
        made.make()
    assert contents(banks[0]) == contents(banks[1])
    press, closures = list(STANDIN_SHAPES).index("lip_press"), []
    for split, record in make_records(SynthConfig(minutes=1.0), 0, 3, banks[0]):
        assert {said.speaker for said in record.speech} <= {s.name for s in speakers if s.split == split}
        for person, said in enumerate(record.speech):
            tracks = phone_tracks(said.phones, record.num_frames)
            lead = round(said.lead_s * 25)
            spoken = tracks.silence[lead:] < 0.5
            pressed = record.motion[person, : len(spoken), press].astype(float)
            closures.append(np.corrcoef(pressed[spoken], tracks.bilabial[lead:][spoken])[0, 1])
    assert np.mean(closures) > 0.6 and min(closures) > 0.45
