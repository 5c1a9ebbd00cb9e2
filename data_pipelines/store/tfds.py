"""The metadata with which tensorflow-datasets' `builder_from_directory` opens a store.

The library is imported where metadata are written: reading a store does without its half a second.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from google.protobuf.json_format import MessageToDict

from unils_jax.motion import MOTION_DIM

if TYPE_CHECKING:
    from tensorflow_datasets.core.features import FeaturesDict

VERSION = "2.0.0"
FILE_TEMPLATE = "{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"
# The order of the keys of dataset_info.json and of its splits.
_INFO_KEYS = ("fileFormat", "name", "version", "splits")
_SPLIT_KEYS = ("name", "filepathTemplate", "numBytes", "shardLengths")


def shard_file(split: str, shard: int) -> str:
    """Returns the name of a shard, as FILE_TEMPLATE says."""
    return f"{split}.array_record-{shard:05d}"


def motion_features(dtype: str) -> "FeaturesDict":
    """Returns the features of a motion chunk: at most 125 frames of one person."""
    from tensorflow_datasets import features  # noqa: PLC0415 - see the top

    return features.FeaturesDict(
        {
            "record": features.Text(),
            "person": features.Scalar(np.int64),
            "start_frame": features.Scalar(np.int64),
            "identity": features.Text(),
            "source": features.Text(),
            "events": features.Text(),
            "observed": features.Tensor(shape=(MOTION_DIM,), dtype=np.uint8, encoding="bytes"),
            "speech_mask": features.Tensor(shape=(None,), dtype=np.uint8, encoding="bytes"),
            "motion": features.Tensor(shape=(None, MOTION_DIM), dtype=np.dtype(dtype), encoding="bytes"),
        }
    )


def audio_features(dtype: str) -> "FeaturesDict":
    """Returns the features of an audio chunk: the samples of one motion chunk."""
    from tensorflow_datasets import features  # noqa: PLC0415 - see the top

    return features.FeaturesDict(
        {
            "record": features.Text(),
            "person": features.Scalar(np.int64),
            "start_frame": features.Scalar(np.int64),
            "audio": features.Tensor(shape=(None,), dtype=np.dtype(dtype), encoding="bytes"),
        }
    )


def metadata(name: str, features: "FeaturesDict", splits: Mapping[str, tuple[Sequence[int], int]]) -> dict[str, str]:
    """Returns the texts of features.json and dataset_info.json by file name.

    `splits` gives each split's number of examples per shard, and the bytes of its shards.
    """
    import tensorflow_datasets as tfds  # noqa: PLC0415 - see the top

    # `folder_dataset.write_metadata` does the same, but lists the folder for its shards, and
    # refuses a shard that holds no example, like the audio of a store without audio.
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version(VERSION), data_dir="", module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    info.set_file_format("array_record")
    template = tfds.core.ShardedFileTemplate(data_dir="", template=FILE_TEMPLATE, dataset_name=name)
    info.set_splits(
        tfds.core.splits.SplitDict(
            tfds.core.SplitInfo(name=split, shard_lengths=list(lengths), num_bytes=size, filename_template=template)
            for split, (lengths, size) in splits.items()
        )
    )
    # The library's own layout may change with its version; equal records give equal bytes with any.
    tree = json.loads(info.as_json)
    tree["splits"] = [{key: split[key] for key in _SPLIT_KEYS} for split in tree.get("splits", [])]
    return {
        "features.json": json.dumps(MessageToDict(features.to_proto()), indent=1, sort_keys=True),
        "dataset_info.json": json.dumps({key: tree[key] for key in _INFO_KEYS}, indent=1),
    }
