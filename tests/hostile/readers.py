"""All readers of files that users give, and which functions of the packages each of them covers."""

import importlib

# Modules of this folder with readers; a process imports those that it needs.
MODULES = ("motions", "sounds", "stores", "layouts", "models", "runs")
_NAMES = {
    "motions": ("motion table", "motion file", "motion of trackers", "motion of ARTalk"),
    "sounds": ("sound", "list of recordings"),
    "stores": ("store manifest", "store index", "store chunks", "store files", "store behind a URL", "audio features"),
    "layouts": (
        "UniTalker set",
        "DualTalk folder",
        "folder of files",
        "folder of tracks",
        "Seamless folder",
        "release LMDB",
        "conversion resumed",
        "bank of voices",
    ),
    "models": (
        "weights, .pt",
        "weights, .safetensors",
        "weights, .safetensors of other systems",
        "adapter",
        "audio encoder",
        "FLAME",
        "assets of annotations",
    ),
    "runs": ("workdir", "workdir resumed", "answers of a study", "motion to score"),
    "broken": (
        "broken: raises",
        "broken: two lines",
        "broken: ends",
        "broken: takes memory",
        "broken: runs",
        "broken: not at all",
    ),
}


def names_of(module: str) -> tuple[str, ...]:
    """Returns the names of a module's readers without importing it."""
    return _NAMES[module]


def readers_of(*modules: str) -> dict:
    """Returns the readers of modules by name."""
    readers = {}
    for module in modules:
        found = importlib.import_module(f"hostile.{module}").READERS
        assert tuple(found) == _NAMES[module], f"_NAMES[{module!r}] must be {tuple(found)}"
        readers |= found
    return readers


# Published layouts of data and the reader of each.
SOURCES = {
    "DualTalkSource": "DualTalk folder",
    "FilesSource": "folder of files",
    "TracksSource": "folder of tracks",
    "SeamlessSource": "Seamless folder",
    "ReleaseSource": "release LMDB",
}

# Every function that opens a file, `module:function`, and a reader that calls it.
OPENED_BY = {
    "data_pipelines.conversion.convert:_read_json": "conversion resumed",
    "data_pipelines.conversion.verify:_check_file": "store files",
    "data_pipelines.loader:set_state": "workdir resumed",
    "data_pipelines.sources.dualtalk:read_clip": "DualTalk folder",
    "data_pipelines.sources.seamless:_head": "Seamless folder",
    "data_pipelines.sources.seamless:_inspected": "Seamless folder",
    "data_pipelines.sources.seamless:_num_frames": "Seamless folder",
    "data_pipelines.sources.seamless_files:_opened": "Seamless folder",
    "data_pipelines.sources.unils_lmdb:_index_bytes": "release LMDB",
    "data_pipelines.sources.unils_lmdb:_read_index": "release LMDB",
    "data_pipelines.sources.unils_lmdb:_track": "release LMDB",
    "data_pipelines.sources.unils_lmdb:open_lmdb": "release LMDB",
    "data_pipelines.sources.unitalker:_index_parts": "UniTalker set",
    "data_pipelines.sources.unitalker:_num_samples": "UniTalker set",
    "data_pipelines.sources.unitalker:_read_audio": "UniTalker set",
    "data_pipelines.sources.unitalker:_templates": "UniTalker set",
    "data_pipelines.sources.unitalker:length": "UniTalker set",
    "data_pipelines.sources.unitalker:read": "UniTalker set",
    "data_pipelines.sources.unitalker:read_pca": "UniTalker set",
    "data_pipelines.synthetic.bank.bank:_read": "bank of voices",
    "data_pipelines.tracks.diarisation:read_rttm": "folder of tracks",
    "data_pipelines.tracks.files:_plain": "folder of tracks",
    "data_pipelines.tracks.files:_read_file": "folder of tracks",
    "data_pipelines.tracks.files:read_json": "folder of tracks",
    "data_pipelines.tracks.files:_read_pickle": "folder of tracks",
    "data_pipelines.tracks.people:read_people_table": "folder of tracks",
    "data_pipelines.tracks.pictures:picture_times": "folder of tracks",
    "data_pipelines.store.chunks:events_of": "store chunks",
    "data_pipelines.store.features:__init__": "audio features",
    "data_pipelines.store.features:_check_begun": "audio features",
    "data_pipelines.store.features:_kept_error": "audio features",
    "data_pipelines.store.features:_shard": "audio features",
    "data_pipelines.store.index:load_index": "store index",
    "data_pipelines.store.manifest:_read_local": "store manifest",
    "data_pipelines.store.manifest:read_manifest": "store manifest",
    "data_pipelines.store.remote:_copy": "store behind a URL",
    "data_pipelines.store.remote:read_text": "store behind a URL",
    "data_pipelines.store.shard_cache:_reader": "store chunks",
    "unils_jax.checkpoints.adapters:read_adapter": "adapter",
    "unils_jax.checkpoints.audio_encoders:_folder_weights": "audio encoder",
    "unils_jax.checkpoints.exporting:_check_config_beside": "weights, .safetensors",
    "unils_jax.checkpoints.model_card:last_metrics": "workdir",
    "unils_jax.checkpoints.torch_files:read_json": "weights, .safetensors",
    "unils_jax.checkpoints.torch_files:read_pt": "weights, .pt",
    "unils_jax.checkpoints.torch_files:read_safetensors": "weights, .safetensors",
    "unils_jax.checkpoints.torch_files:read_tensors": "weights, .safetensors",
    "unils_jax.pickles.torch_zip:load": "weights, .pt",
    "unils_jax.pickles.torch_zip:open_archive": "weights, .pt",
    "unils_jax.checkpoints.workdir:_read_meta": "workdir",
    "unils_jax.checkpoints.workdir:read_item": "workdir",
    "unils_jax.face.flame_file:_read_flame": "FLAME",
    "unils_jax.face.flame_file:_read_npz": "FLAME",
    "unils_jax.face.flame_file:_read_pickle": "FLAME",
    "unils_jax.files:_opened": "motion of trackers",
    "unils_jax.files:_read_archive": "motion of trackers",
    "unils_jax.files:npz_names": "motion of trackers",
    "unils_jax.files:read_lines": "list of recordings",
    "unils_jax.inference.recordings:is_decoded": "motion file",
    "unils_jax.inference.recordings:_in_list": "list of recordings",
    "unils_jax.media:_read_container": "sound",
    "unils_jax.media:_read_uncompressed": "sound",
    "unils_jax.media:decode_media": "sound",
    "unils_jax.motion:load_motion": "motion file",
    "unils_jax.outputs.annotations:read_template": "assets of annotations",
    "unils_jax.outputs.arkit:read_basis": "assets of annotations",
    "unils_jax.outputs.layouts:_artalk_channels": "motion of ARTalk",
    "unils_jax.outputs.layouts:_artalk_tensor": "motion of ARTalk",
    "unils_jax.outputs.tables:_fields": "motion table",
    "unils_jax.outputs.tables:_read_rows": "motion table",
    "unils_jax.outputs.trackers:_say": "motion of trackers",
    "unils_jax.outputs.trackers:read_tracker": "motion of trackers",
    "unils_jax.systems.unitalker.annotations:_blendshapes": "assets of annotations",
    "unils_jax.systems.unitalker.annotations:_indices": "assets of annotations",
    "unils_jax.training.checkpoint:_open": "workdir resumed",
    "unils_jax.training.checkpoint:_with_defaults": "workdir resumed",
    "unils_jax.training.checkpoint:check_workdir": "workdir resumed",
    "unils_jax.training.checkpoint:problem_of": "workdir resumed",
    "unils_jax.training.checkpoint:saved_config": "workdir resumed",
    "unils_jax.training.metrics:__init__": "workdir resumed",
    "unils_jax.training.metrics:_step_and_split": "workdir resumed",
    "unils_jax.training.wandb_run:_saved_id": "workdir resumed",
    "unils_jax.evaluation.analyses.study:_read": "answers of a study",
    "unils_jax.evaluation.motion_files:_is_ours": "motion to score",
}

# Functions whose files no stranger gives, and why.
_OWN = "reads what the same command wrote a moment ago"
_PACKAGED = "reads a file of the package"
OTHERS = {
    "data_pipelines.conversion.convert:_holder": "reads a lock, whose damage it ignores by itself",
    "data_pipelines.conversion.unitalker_pca:write_pca": _OWN,
    "data_pipelines.store.tfds:metadata": _OWN,
    "data_pipelines.store.writer:_checksum": _OWN,
    "data_pipelines.synthetic.bank.engines:speak": _OWN,
    "data_pipelines.synthetic.bank.espeak_child:main": _OWN,
    "unils_jax.benchmarks.data:_whole_record": _OWN,
    "unils_jax.benchmarks.data:fill_page_cache": _OWN,
    "unils_jax.benchmarks.data:open_reader": _OWN,
    "unils_jax.benchmarks.data:write_lmdb": _OWN,
    "unils_jax.benchmarks.demo:plot_losses": _OWN,
    "unils_jax.benchmarks.miniature.history:main": "reads the folder of a finished `unils miniature`, by hand",
    "unils_jax.benchmarks.miniature.motions:responses_to_unils": _OWN,
    "unils_jax.benchmarks.miniature.run:begin": "compares the bytes of its own folder's plan",
    "unils_jax.benchmarks.miniature.run:write_report": _OWN,
    "unils_jax.benchmarks.miniature.work:score": _OWN,
    "unils_jax.benchmarks.timing:processor": "reads what Linux says of the processor",
    "unils_jax.benchmarks.trace:_events": _OWN,
    "unils_jax.checkpoints.exporting:_as_json": "parses its own text",
    "unils_jax.checkpoints.buckets:fetch": "copies bytes, which are then read as weights or as a workdir",
    "unils_jax.cli.train:run": _OWN,
    "unils_jax.config:load_config": "runs the user's own Python, by design",
    "unils_jax.face.flame_file:flame_regions": _PACKAGED,
    "unils_jax.outputs.page:page_script": _PACKAGED,
    "unils_jax.outputs.serving.access:_read_tokens": "takes words by a pattern from bytes of any kind, 64 KiB at most",
    "unils_jax.outputs.serving.load:_listen": "reads answers of the server that it measures",
    "unils_jax.outputs.serving.load:_resident_mib": "reads what Linux says of a process",
    "unils_jax.outputs.serving.load:run": "reads answers of the server that it measures",
    "unils_jax.outputs.serving.page:page_files": _PACKAGED,
    "unils_jax.outputs.serving.protocol:_object": "messages, which tests/outputs/serving/test_hostile.py damages",
    "unils_jax.runtime:_holder": "reads a lock, whose damage it ignores by itself",
    "unils_jax.runtime:is_locked": "opens a lock and reads nothing of it",
    "unils_jax.training.loop:_evaluate_and_save": "parses its own text",
}
