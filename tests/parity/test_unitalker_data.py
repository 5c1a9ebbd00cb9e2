"""UniTalker's records, PCA and long audio against the goldens."""

import jax.numpy as jnp
import numpy as np
import pytest
from talker_data import write_set

from data_pipelines.conversion.unitalker_pca import fit_pca
from data_pipelines.sources.base import SkippedEntry
from data_pipelines.sources.unitalker import TalkerSplit
from parity.compare import LAYER, TABLE, assert_close, assert_relative
from unils_jax.nn.params import merge, split
from unils_jax.systems.unitalker.inference import cross_fade, window_bounds
from unils_jax.systems.unitalker.model import PCA, prepare_audio

PROJECTOR = 1e-5  # relative; the goldens' own second program came to 6.6e-6


@pytest.fixture(scope="module")
def sets(golden, tmp_path_factory):
    """The golden's sets, with subjects in the order in which its records name them."""
    case, folder = golden("unitalker/data"), tmp_path_factory.mktemp("sets")
    written = []
    items = case.outputs["items"]
    for number, (name, rows) in enumerate(case.config["spec"].items()):
        records = []
        offset = sum(list(case.config["subjects"].values())[:number])
        for i, (fps, frames, samples) in enumerate(rows):
            annotation = case.inputs[f"{name}.{i}.annot"]
            # Long ones are not stored: only their lengths are compared.
            annotation = annotation if len(annotation) else np.ones((frames, 4), np.float32)
            audio = np.resize(case.inputs[f"{name}.{i}.audio200_i8"].astype(np.float32) / 128, samples)
            kept = [item[0] - offset for item in items if (item[5], item[4]) == (number, i)]
            records.append((int(kept[0]) if kept else 0, fps, annotation, audio))
        settings = {"scale": case.config["scale"][name], "repeats": case.config["duplicate"][number]}
        written.append(write_set(folder / name, name, records, case.inputs[f"{name}.id_template"], **settings))
    return written


def kept_in_order(split_: TalkerSplit) -> list[tuple[int, object]]:
    """(record number in its set, entry) as the release concatenates and repeats them, too short ones left out."""
    order = []
    for number, one in enumerate(split_.sets):
        entries = [entry for entry in split_.entries if entry.number == number]
        kept = []
        for i, entry in enumerate(entries):
            try:
                split_.length(entry)
                kept.append((i, entry))
            except SkippedEntry as dropped:
                assert dropped.reason == "too short"
        order += kept * one.repeats
    return order


def test_records_match(golden, sets):
    case = golden("unitalker/data")
    records = TalkerSplit(sets, "train")
    order = kept_in_order(records)
    assert len(order) == len(case.outputs["items"]) and records.num_identities == case.config["identity_num"] + 1
    for (i, entry), expected in zip(order, case.outputs["items"], strict=True):
        clip = records.read(entry)
        found = [clip.identity, entry.model_fps, len(clip.motion), len(clip.audio), i, entry.number]
        assert found == expected.tolist()
        assert records.length(entry) == (len(clip.motion), len(clip.audio))


def test_scaled_annotations_and_normalised_audio_match(golden, sets):
    outputs = golden("unitalker/data").outputs
    records = TalkerSplit(sets, "train")
    order = kept_in_order(records)
    compared = 0
    for item in (0, 1, 2, 9, 10, 11):
        i, entry = order[item]
        clip = records.read(entry)
        audio = prepare_audio(clip.audio, normalize=True)
        assert_relative(clip.template, outputs[f"item{item}.template"][0], TABLE)
        if len(golden("unitalker/data").inputs[f"D{entry.number}.{i}.annot"]):
            assert_relative(clip.motion[-1], outputs[f"item{item}.data_last"], TABLE)
            compared += 1
        assert_close(audio[:8], outputs[f"item{item}.audio_first8"], LAYER)
        wide = audio.astype(np.float64)
        assert_close([wide.mean(), wide.std()], outputs[f"item{item}.audio_stats"], TABLE)
    assert compared == 5


@pytest.mark.parametrize("name", ["D0", "D1", "D2"])
def test_the_incremental_pca_matches(golden, name):
    pytest.importorskip("sklearn", reason="fits a PCA: pip install '.[pca]'")
    case = golden("unitalker/pca")
    rows, outputs = case.inputs[f"{name}.data"].copy(), case.outputs
    found = fit_pca(rows, case.config["components"][name], case.config["batch_size"][name], case.inputs[f"{name}.perm"])
    expected = {key.removeprefix(f"{name}."): v for key, v in outputs.items() if key.startswith(f"{name}.")}
    for key in ("explained_variance_ratio", "original_data_mean", "S"):
        assert_relative(found[key], expected[key], PROJECTOR)
    for components in (found["components_to_data"], expected["components_to_data"]):
        np.testing.assert_allclose(components @ components.T, np.eye(len(components)), atol=1e-5)
    projectors = [c.T @ c for c in (found["components_to_data"], expected["components_to_data"])]
    assert_relative(*projectors, PROJECTOR)
    # Signs are scikit-learn's own choice.
    signs = np.sign((found["components_to_data"] * expected["components_to_data"]).sum(1))
    assert_relative(signs * found["data_components_mean"], expected["data_components_mean"], 1e-4)
    assert_relative(found["data_components_std"], expected["data_components_std"], PROJECTOR)


def incremental_rmse_bound(rows, order, batch_size: int, singular_values, components) -> float:
    """The largest error that an incremental PCA with these singular values can have on its rows.

    How far it is above the exact PCA's depends on the data, so that no fixed share is right. Each fit keeps B, the
    best rows for the batch stacked on those kept before, and discards R, which is orthogonal to it: the energy of the
    fitted rows is F'F = B'B + sum R'R. With P on the span of the components, which are B's own directions,
    tr((I - P) F'F) = |F|^2 - sum S^2 - tr(P sum R'R) <= |F|^2 - sum S^2, with F less its own mean. The mean of all
    rows adds its distance from that, and rows that filled no batch add their own error.
    """
    rows, components = rows.astype(np.float64), components.astype(np.float64)
    count = len(rows) // batch_size * batch_size
    fitted, left, mean = rows[order[:count]], rows[order[count:]], rows.mean(axis=0)
    own_mean = fitted.mean(axis=0)
    energy = ((fitted - own_mean) ** 2).sum() - (singular_values.astype(np.float64) ** 2).sum()
    energy += count * ((own_mean - mean) ** 2).sum()
    energy += (((left - mean) - (left - mean) @ components.T @ components) ** 2).sum()
    return float(np.sqrt(energy / rows.size))


@pytest.mark.parametrize("name", ["D0", "D1", "D2"])
def test_the_pca_layer_matches(golden, name):
    case = golden("unitalker/pca")
    rows, outputs = case.inputs[f"{name}.data"], case.outputs
    components = outputs[f"{name}.components_to_data"].astype(np.float32)
    used = min(case.config["pca_dim_used"], len(components))
    graphdef, params = split(PCA(len(components), rows.shape[1], used))
    mean = jnp.asarray(outputs[f"{name}.original_data_mean"])
    layer = merge(graphdef, params | {"components": jnp.asarray(components), "mean": mean})
    coefficients = layer.encode(jnp.asarray(rows[None]))
    decoded = layer.decode(coefficients)
    assert_relative(coefficients[0, :20], outputs[f"{name}.encode11_first20"], LAYER)
    assert_relative(decoded[0, :20], outputs[f"{name}.decode11_first20"], LAYER)
    error = np.sqrt(np.mean((np.asarray(decoded[0], np.float64) - rows) ** 2))
    assert_relative(error, outputs[f"{name}.recon_rmse"], 1e-4)  # a difference of nearly equal numbers
    order, batch = case.inputs[f"{name}.perm"], case.config["batch_size"][name]
    bound = incremental_rmse_bound(rows, order, batch, outputs[f"{name}.S"][:used], components[:used])
    assert outputs[f"{name}.exact_rmse"] < error <= bound * (1 + 1e-6)  # rounding of the float32 decode


def test_windows_of_long_audio_match(golden):
    case = golden("unitalker/long_audio")
    for samples, lengths in zip(case.inputs["lengths"], case.outputs["window_lengths"], strict=True):
        found = [last - first for first, last in window_bounds(int(samples))]
        assert found == [length for length in lengths.tolist() if length]


def test_cross_faded_windows_match(golden):
    case = golden("unitalker/long_audio")
    for name in ("fps25a", "fps25b", "fps25c", "fps30a", "fps30b", "fps30c"):
        pieces = [case.inputs[f"{name}.piece{i}"] for i in range(3)]
        merged = cross_fade(pieces, 25 if "25" in name else 30)
        assert merged.dtype == np.float32
        assert_relative(merged, case.outputs[f"{name}.merged"], TABLE)


def test_windows_are_normalised_again(golden):
    audio = golden("unitalker/xlsr_conv").inputs["audio_i8"].astype(np.float32) / 128
    gain, offset = golden("unitalker/long_audio").inputs["twice_audio_f16_note"].astype(np.float32)
    signal = np.concatenate([audio, np.float32(0.3) * audio[::-1]])[:30_000] * gain + offset
    whole = np.zeros(26 * 16_000, np.float32)
    whole[: len(signal)] = prepare_audio(signal, normalize=True)
    found = [prepare_audio(whole[a:b], normalize=True)[:200] for a, b in window_bounds(len(whole))]
    assert_relative(np.stack(found), golden("unitalker/long_audio").outputs["twice_normalised_first200"], LAYER)
