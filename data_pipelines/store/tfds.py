"""What tensorflow-datasets reads beside the shards, so that `builder_from_directory` opens a store.

Written as text: the library itself, and TensorFlow, are needed neither to write a store nor to read one.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from unils_jax.motion import MOTION_DIM

VERSION = "2.0.0"
FILE_TEMPLATE = "{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"
_FEATURES = "tensorflow_datasets.core.features."


def shard_file(split: str, shard: int) -> str:
    """The name of a shard, as FILE_TEMPLATE says."""
    return f"{split}.array_record-{shard:05d}"


def motion_features(dtype: str) -> dict[str, Any]:
    """The features of a motion piece: at most 125 frames of one person."""
    return {
        "record": _text(),
        "person": _integer(),
        "start_frame": _integer(),
        "identity": _text(),
        "source": _text(),
        "events": _text(),
        "observed": _tensor("uint8", MOTION_DIM),
        "speech_mask": _tensor("uint8", None),
        "motion": _tensor(dtype, None, MOTION_DIM),
    }


def audio_features(dtype: str) -> dict[str, Any]:
    """The features of an audio piece: the samples of one motion piece."""
    return {"record": _text(), "person": _integer(), "start_frame": _integer(), "audio": _tensor(dtype, None)}


def features_json(features: Mapping[str, Any]) -> str:
    """features.json of a dataset with these features."""
    tree = {"featuresDict": {"features": features}, "pythonClassName": _FEATURES + "features_dict.FeaturesDict"}
    return json.dumps(tree, indent=1, sort_keys=True)


def dataset_info_json(name: str, splits: Mapping[str, tuple[Sequence[int], int]]) -> str:
    """dataset_info.json; `splits` gives each split's number of examples per shard, and its bytes."""
    described = [
        {
            "name": split,
            "filepathTemplate": FILE_TEMPLATE,
            "numBytes": str(num_bytes),
            "shardLengths": [str(length) for length in lengths],
        }
        for split, (lengths, num_bytes) in splits.items()
    ]
    info = {"fileFormat": "array_record", "name": name, "version": VERSION, "splits": described}
    return json.dumps(info, indent=1)


def _text() -> dict[str, Any]:
    return {"pythonClassName": _FEATURES + "text_feature.Text", "text": {}}


def _integer() -> dict[str, Any]:
    tensor = {"dtype": "int64", "encoding": "none", "shape": {}}
    return {"pythonClassName": _FEATURES + "scalar.Scalar", "tensor": tensor}


def _tensor(dtype: str, *dimensions: int | None) -> dict[str, Any]:
    sizes = ["-1" if size is None else str(size) for size in dimensions]
    tensor = {"dtype": dtype, "encoding": "bytes", "shape": {"dimensions": sizes}}
    return {"pythonClassName": _FEATURES + "tensor_feature.Tensor", "tensor": tensor}
