"""What audio explains, on conversations in which it is known."""

import json

import numpy as np
import pytest

from data_pipelines.record import Record
from data_pipelines.store.reader import Store
from data_pipelines.store.writer import write_store
from unils_jax.audio import frame_loudness
from unils_jax.cli.main import main
from unils_jax.errors import UserError
from unils_jax.evaluation.analyses import imbalance
from unils_jax.motion import JAW

pytest.importorskip("sklearn", reason="the regressions are scikit-learn's: pip install '.[analysis]'")


def conversation(seed: int, frames: int = 300) -> tuple[str, Record]:
    """Noise whose level moves the speaker's jaw, in turns of 3 s; all other motion is random."""
    rng = np.random.default_rng(seed)
    speaking = (np.arange(frames) // 75 % 2 == np.array([[0], [1]])).astype(bool)
    level = np.repeat(np.exp(rng.normal(-3, 0.7, (2, frames // 5))), 5 * 640, axis=1)
    audio = np.where(np.repeat(speaking, 640, axis=1), level, 1e-3) * rng.standard_normal((2, frames * 640))
    motion = rng.standard_normal((2, frames, 108)) * 0.3
    loudness = np.stack([frame_loudness(track.astype(np.float32)) for track in audio])
    motion[:, :, JAW] = (np.where(speaking, loudness + 60, 30) / 100)[:, :, None]
    stored = (audio.clip(-1, 1) * 32767).astype(np.int16)
    return "train", Record(f"talk{seed}", motion.astype(np.float16), stored, speaking, "standin")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("imbalance") / "store"
    write_store(path, map(conversation, range(4)))
    return path


def test_the_own_voice_explains_the_jaw_and_nothing_explains_the_listener(store):
    report = imbalance.measure(Store(store), imbalance.Settings(frames=6000, pictured=200))

    def value(role, source, regression, group):
        return report["explained"][role][source][regression][group]["value"]

    assert report["people"] == 8
    assert value("speaking", "own", "ridge", "jaw") > 0.8
    assert value("speaking", "own", "network", "jaw") > 0.5
    assert value("speaking", "other", "ridge", "jaw") < 0.1
    for source in imbalance.SOURCES:
        for group in ("expression", "head", "eyes"):
            assert value("listening", source, "ridge", group) < 0.1
    # A jaw that does not move has nothing to explain.
    assert report["explained"]["listening"]["own"]["ridge"]["jaw"]["value"] is None
    assert np.array(report["picture"]["speaking"]["motion"]).shape == (100, 2)
    low, high = report["explained"]["speaking"]["own"]["ridge"]["jaw"]["interval"]
    assert low <= value("speaking", "own", "ridge", "jaw") <= high


def test_features_show_a_frame_s_own_audio_and_its_neighbours():
    audio = np.zeros((1, 60 * 640), np.float32)
    audio[:, 30 * 640 : 31 * 640] = 0.3 * np.sin(np.arange(640) * 0.5)
    features = imbalance.audio_features(audio, 60).reshape(60, len(imbalance.OFFSETS), imbalance.NUM_MELS)
    loud = features.max(axis=-1)
    for k, offset in enumerate(imbalance.OFFSETS):
        if 0 <= 30 - offset < 60:
            assert abs(int(loud[:, k].argmax()) - (30 - offset)) <= 1


def test_the_command_writes_three_files_and_says_what_is_wrong(store, tmp_path, capsys):
    assert (
        main(["data", "imbalance", str(store), "--frames", "400", "--pictured", "0", "--out", f"{tmp_path}/r.json"])
        == 0
    )
    assert "speaking, own audio, ridge" in capsys.readouterr().out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["picture"] is None
    assert report["settings"]["frames"] == 400
    assert "What audio explains" in (tmp_path / "r.html").read_text()

    alone = Record("alone", np.zeros((1, 30, 108), np.float32), None, None, "standin")
    write_store(tmp_path / "alone", [("train", alone)])
    with pytest.raises(UserError, match="at least 2 are needed"):
        imbalance.measure(Store(tmp_path / "alone"), imbalance.Settings())
    assert main(["data", "imbalance", str(store), "--frames", "0"]) == 2
    assert "--frames must be at least 1" in capsys.readouterr().err
