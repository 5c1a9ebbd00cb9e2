"""The goldens' tiny UniTalker models, their annotations and their spaces, built through the package's own code."""

from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from conftest import read_golden

from unils_jax.checkpoints.torch_keys import check_params, to_paths
from unils_jax.face.flame import fold
from unils_jax.models.wav2vec2 import Wav2Vec2Config
from unils_jax.models.wavlm import WavLMConfig
from unils_jax.nn.params import abstract, merge
from unils_jax.systems.unitalker.annotations import VertexSpace, load_spaces, parameter_space
from unils_jax.systems.unitalker.model import UniTalker, UniTalkerConfig, prepare_audio

CASES = ("xlsr_conv", "xlsr_transformer", "wavlm_conv")
SETS = ("D0", "D1", "D3", "D5", "D7")
PCA_ROWS = {"D0": 12, "D1": 10}
RESOURCES = {
    "02_flame_mouth_idx.npy": "mouth_flame",
    "03_emo_talk_mouth_idx.npy": "mouth_3detf",
    "04_BIWI_mouth_idx.npy": "mouth_biwi",
    "05_inhouse_arkit_mouth_idx.npy": "mouth_inhouse",
    "flame_humanface_index.npy": "face_flame",
}


def talker_config(case: str, **changes) -> UniTalkerConfig:
    """The sizes of a case, read off its config.json."""
    about = read_golden(f"unitalker/{case}").config
    encoder = about["encoder"]
    sizes = {
        "width": encoder["hidden_size"],
        "depth": encoder["num_hidden_layers"],
        "num_heads": encoder["num_attention_heads"],
        "hidden_dim": encoder["intermediate_size"],
        "conv_dims": tuple(encoder["conv_dim"]),
        "pos_conv_kernel": encoder["num_conv_pos_embeddings"],
        "pos_conv_groups": encoder["num_conv_pos_embedding_groups"],
    }
    if "num_buckets" in encoder:
        buckets = {"num_buckets": encoder["num_buckets"], "max_distance": encoder["max_bucket_distance"]}
        encoders = {"wavlm": WavLMConfig(**sizes, **buckets)}
    else:
        encoders = {"wav2vec2": Wav2Vec2Config(**sizes)}
    settings = {
        "annotations": tuple(about["annot_type"][name] for name in SETS),
        "dims": tuple(about["annot_dim"][name] for name in SETS),
        "components": tuple(PCA_ROWS.get(name, 0) for name in SETS),
        "num_identities": about["identity_num"],
        "decoder": about["decoder_type"],
        "width": about["decoder_dimension"],
        "pca_dim": about["pca_dim"],
    }
    return UniTalkerConfig(**{**settings, **encoders, **changes})


def case_weights(case: str) -> dict[str, np.ndarray]:
    """The case's tensors under the release's names; the transformer's case shares its encoder with `xlsr_conv`."""
    weights = dict(read_golden(f"unitalker/{case}").weights)
    if case == "xlsr_transformer":
        shared = read_golden("unitalker/xlsr_conv").weights
        weights |= {key: value for key, value in shared.items() if key.startswith("audio_encoder.")}
    return weights


@cache
def talker(case: str, **changes) -> UniTalker:
    """The model with the case's weights."""
    config = talker_config(case, **changes)
    graphdef, shapes = abstract(lambda rngs: UniTalker(config, rngs=rngs))
    params = to_paths(case_weights(case), "unitalker")
    check_params({path: shape.shape for path, shape in shapes.items()}, params, case)
    return merge(graphdef, {path: jnp.asarray(params[path]) for path in shapes})


def talker_batch(case: str, name: str, audio: str = "audio_i8") -> dict[str, jax.Array]:
    """Audio as the encoder wants it, truth, template and true identity of a data set, a batch of one."""
    about, inputs = read_golden(f"unitalker/{case}").config, read_golden("unitalker/xlsr_conv").inputs
    samples = prepare_audio(inputs[audio].astype(np.float32) / 128, normalize=about["processor_normalises"])
    return {
        "audio": jnp.asarray(samples[None]),
        "motion": jnp.asarray(inputs[f"motion.{name}"][None]),
        "template": jnp.asarray(inputs[f"template.{name}"]),
        "identity": jnp.array([about["identity_used"][name]], jnp.int32),
    }


def write_resources(folder: Path) -> Path:
    """The goldens' assets under the release's file names."""
    inputs = read_golden("unitalker/resources").inputs
    for name, array in RESOURCES.items():
        np.save(folder / name, inputs[array])
    for name, suffix in (("EmoTalk", "3detf"), ("inhouse_arkit", "inhouse")):
        arrays = {"meanshape": inputs[f"bs_mean_{suffix}"], "blendshape": inputs[f"bs_basis_{suffix}"]}
        np.savez(folder / f"{name}.npz", **arrays)
    return folder


def talker_spaces(folder: Path) -> dict[str, VertexSpace]:
    """Spaces by data set, read from `write_resources(folder)`; FLAME's from the goldens' own small head."""
    write_resources(folder)
    kinds = read_golden("unitalker/xlsr_conv").config["annot_type"]
    inputs = read_golden("unitalker/resources").inputs
    names = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights")
    head = fold(*(inputs[f"flame_{name}"] for name in names))
    loaded = load_spaces(folder, tuple(kinds[name] for name in SETS if name != "D5"))
    spaces = {name: loaded[kinds[name]] for name in SETS if name != "D5"}
    return spaces | {"D5": parameter_space(head, inputs["face_flame"], inputs["mouth_flame"])}
