"""Configs: where they are found, how they are overridden, what is refused, and what the shipped ones build."""

import json

import ml_collections
import pytest

from unils_jax.cli.main import main
from unils_jax.config import CONFIG_FOLDERS, config_path, described, from_dict, load_config, override
from unils_jax.errors import UserError
from unils_jax.systems.registry import STAGES, current_run
from unils_jax.training.config import DataConfig, RunConfig, count_epochs, override_run, run_config

SIZES = (("", ""), ("", "_s"), ("smoke/", ""))
SHIPPED = [f"{size}{stage}{small}" for stage in ("codec", "prior", "dialogue") for size, small in SIZES] + ["smoke/ear"]
STAGE_OF = {name: name.removeprefix("smoke/").removesuffix("_s") for name in SHIPPED}
for size in ("baselines/", "smoke/"):
    STAGE_OF |= {f"{size}dualtalk": "dualtalk", f"{size}artalk_codec": "codec", f"{size}artalk_prior": "artalk"}
    STAGE_OF |= {f"{size}unitalker": "unitalker", f"{size}artalk_partner": "artalk"}
for name, stage in (("scratch", "artalk"), ("mixed", "dialogue"), ("artalk_codec", "codec"), ("artalk", "artalk")):
    STAGE_OF[f"miniature/{name}"] = stage
STAGE_OF |= {f"miniature/{stage}": stage for stage in ("codec", "prior", "dialogue", "dualtalk")}
STAGE_OF["dialogue_mimi"] = "dialogue"
for stage in ("codec", "prior", "dialogue"):
    STAGE_OF |= {f"{size}{stage}_{length}": stage for size in ("live/", "live/smoke/") for length in ("1s", "04s")}
SHIPPED = list(STAGE_OF)


def values(name: str, *assignments: str) -> dict:
    config = load_config(name)
    override(config, ["data.store=somewhere", *assignments])
    return config.to_dict()


def error_of(function, *args) -> str:
    with pytest.raises(UserError) as raised:
        function(*args)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_every_config_file_is_a_known_stage_and_size():
    assert {
        path.relative_to(folder).with_suffix("").as_posix()
        for folder in CONFIG_FOLDERS
        for path in folder.rglob("[!_]*.py")
    } == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_build_a_run_and_survive_json(name):
    config = run_config(values(name))
    assert config.stage == STAGE_OF[name] and config.model.stage == STAGES[config.stage].trained
    assert config.optimizer.decay_steps == config.num_steps
    assert run_config(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_ask_for_a_store(name):
    assert "data.store is empty; set it with --config.data.store=DIR" in error_of(
        run_config, load_config(name).to_dict()
    )


def test_a_config_is_a_bare_name_or_a_file(tmp_path):
    assert load_config("codec").to_dict() == load_config(str(config_path("codec"))).to_dict()
    assert error_of(config_path, str(tmp_path / "x.py")).endswith("x.py does not exist")
    message = error_of(config_path, "codek")
    assert "no config named 'codek'" in message and "smoke/prior" in message


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("smoke_codec", "smoke/codec"),
        ("smoke_artalk_codec", "smoke/artalk_codec"),
        ("miniature_mixed", "miniature/mixed"),
        ("dualtalk", "baselines/dualtalk"),
    ],
)
def test_a_name_of_before_is_refused_with_the_new_one(old, new):
    assert error_of(config_path, old) == f"no config named {old!r}; it is {new!r} now, or give a path to a .py file"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x = 1", "must define get_config() that returns an ml_collections.ConfigDict"),
        ("def get_config(): return {'stage': 'codec'}", "returns an ml_collections.ConfigDict"),
        ("def get_config(:", "fails with SyntaxError"),
        ("import no_such_module", "fails with ModuleNotFoundError: No module named 'no_such_module'"),
        (
            "from unils_jax.config import load_config\ndef get_config():\n    c = load_config('codec')\n"
            "    c.data.batchsize = 3\n    return c.lock().unlok()",
            "fails with AttributeError",
        ),
    ],
)
def test_a_config_file_that_fails_is_told_in_one_line(tmp_path, text, problem):
    (tmp_path / "mine.py").write_text(text)
    message = error_of(load_config, str(tmp_path / "mine.py"))
    assert "mine.py" in message and problem in message


def test_overrides_keep_the_type_of_what_they_replace():
    config = load_config("prior")
    override(
        config,
        [
            "num_steps=7",
            "data.store=123",
            "data.batch_size=4",
            "optimizer.learning_rate=1",
            "model.codec.scales=(1, 100)",
            "head=none",
            "expression_basis=standin",
        ],
    )
    assert (config.num_steps, config.data.store, config.data.batch_size) == (7, "123", 4)
    assert config.optimizer.learning_rate == 1.0 and type(config.optimizer.learning_rate) is float
    assert config.model.codec.scales == (1, 100)
    assert config.expression_basis == "standin"
    override(config, ["model.codec.scales=[1, 5, 100]"])
    assert config.model.codec.scales == (1, 5, 100)


@pytest.mark.parametrize("name", ["smoke/codec", "smoke/dialogue", "live/smoke/prior_04s", "smoke/artalk_codec"])
def test_every_setting_that_is_listed_can_be_given(name):
    config = load_config(name)
    config.data.store = "store"
    run = run_config(config.to_dict())
    listed = {setting: value for setting, value, _ in described(run) if value is not None}
    assert {"data.clip_step_s", "loss.mesh_velocity", "sampling.tau"} <= set(listed)
    override_run(config, [f"{setting}={value}" for setting, value in listed.items()])
    assert run_config(config.to_dict()) == run


def test_sampling_takes_one_value_or_one_for_each_scale():
    for name, text, tau in [
        ("smoke/dialogue", "2", 2.0),
        ("smoke/prior", "(1, 2, 3, 4, 5.5)", (1.0, 2.0, 3.0, 4.0, 5.5)),
    ]:
        config = load_config(name)
        override_run(config, ["data.store=store", f"sampling.tau={text}"])
        assert run_config(config.to_dict()).sampling.tau == tau


def test_decay_steps_follow_num_steps_until_they_are_set():
    config = load_config("prior")
    override(config, ["num_steps=70"])
    assert config.optimizer.decay_steps == 70
    override(config, ["optimizer.decay_steps=9"])
    assert (config.num_steps, config.optimizer.decay_steps) == (70, 9)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("num_step=3", "unknown config key 'num_step'; did you mean num_steps?"),
        ("model.codec.widht=3", "did you mean model.codec.width?"),
        ("zzz=3", "unknown config key 'zzz'; known are audio_encoder, audio_features"),
        ("num_steps", "--config.num_steps needs a value: --config.num_steps=VALUE"),
        ("num_steps=1.5", "config key num_steps is int (now 200000), got '1.5'"),
        ("num_steps=many", "config key num_steps is int (now 200000), got 'many'"),
        ("num_steps=true", "config key num_steps is int"),
        ("optimizer.learning_rate=fast", "config key optimizer.learning_rate is float (now 0.0001), got 'fast'"),
        ("model.codec.scales=100", "config key model.codec.scales is tuple"),
        ("model.codec=3", "unknown config key 'model.codec'"),
    ],
)
def test_bad_overrides_are_named_with_the_remedy(assignment, message):
    assert message in error_of(override, load_config("codec"), [assignment])


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"stage": "codecs"}, [f"stage must be one of {', '.join(STAGES)}, got 'codecs'"]),
        ({"stage": "prior"}, ["stage is 'prior' but the model's parts make a 'codec'"]),
        ({"num_steps": 0, "log_every": -1}, ["num_steps must be at least 1, got 0", "log_every must be at least 1"]),
        ({"num_steps": "5"}, ["config.num_steps must be int, got '5'"]),
        ({"num_steps": True}, ["config.num_steps must be int, got True"]),
        ({"seed": -1}, ["seed must be from 0 to 4294967295, got -1"]),
        ({"speed": 3, "sed": 4}, ["config has no setting 'speed', did you mean 'seed'?", "no setting 'sed'"]),
        (
            {"data": {"store": "x", "batch_size": 0, "num_workers": -1}},
            ["batch_size must be at least 1", "num_workers"],
        ),
        ({"data": {"store": "x", "batchsize": 2}}, ["config.data has no setting 'batchsize'", "lacks 'batch_size'"]),
        ({"data": "x"}, ["config.data must be a group of settings, got 'x'"]),
        ({"data": None}, ["config.data must be a group of settings, got None"]),
        ({"model": {"codec": {"width": 0}}}, ["codec.width, depth and num_heads must be at least 1"]),
        ({"model": {"codec": {"num_heads": 0}}}, ["codec.width, depth and num_heads must be at least 1"]),
        ({"model": {"codec": {"width": 30, "num_heads": 4}}}, ["codec.width / num_heads must be an even number"]),
        ({"model": {"codec": {"scales": (5, 1, 100)}}}, ["codec.scales must rise"]),
        ({"model": {"codec": {"scales": (0, 50)}}}, ["codec.scales must rise from at least 1, got (0, 50)"]),
        (
            {"model": {"codec": {"scales": (1, "a")}}},
            ["config.model.codec.scales must be tuple[int, ...], got (1, 'a')"],
        ),
        ({"model": {"codec": {"code_dim": 0}}}, ["codec.code_dim must be at least 1"]),
        ({"model": {"codec": {"motion_dim": 64}}}, ["motion_dim 108"]),
        ({"model": {"codec": {}, "prior": {"audio_dim": 8}}, "stage": "dialogue"}, ["needs an audio encoder"]),
        ({"model": {"logmel": {}}}, ["prior.audio_dim must be the encoder's 200, got None"]),
        ({"model": {"wav2vec2": {}, "logmel": {}}}, ["give wav2vec2 or logmel, not both"]),
        ({"model": {"lora": {"rank": 0}}}, ["lora.rank must be at least 1"]),
        (
            {"model": {"codec": None}},
            ["config.model.codec must be a group of settings, got None"],
        ),
        ({"stage": "dualtalk", "model": {"lora": {}}}, ["config.model has no setting 'lora'"]),
        ({"stage": "dualtalk", "system": "unils"}, ["system is 'unils', but the dualtalk stage is of 'dualtalk'"]),
        ({"system": "unity"}, ["config.system must be one of unils, artalk, dualtalk, unitalker, got 'unity'"]),
        ({"settings": {"pivot_rate": 0.2}}, ["config.settings: UniLS has none of its own"]),
        (
            {"stage": "dualtalk", "model": {"width": 30, "dropout_rate": 1.0}},
            ["width must be even and a multiple of num_heads, got 30 and 4", "must be in 0..1, got 1.0, 0.5"],
        ),
    ],
)
def test_bad_settings_are_all_named_at_once(changes, messages):
    config = {"stage": "codec", "num_steps": 3, "data": {"store": "x", "batch_size": 1}, "model": {}, **changes}
    message = error_of(run_config, config)
    for part in messages:
        assert part in message


def test_plain_values_become_frozen_dataclasses():
    config = from_dict(DataConfig, {"store": "x", "batch_size": 1})
    assert config == DataConfig("x", 1)
    with pytest.raises(AttributeError):
        config.store = "y"
    run = run_config(
        {
            "stage": "codec",
            "num_steps": 3,
            "data": ml_collections.ConfigDict({"store": "x", "batch_size": 1}),
            "model": {"codec": {"scales": [1, 100]}, "prior": None},
            "optimizer": {"learning_rate": 1},
        }
    )
    assert isinstance(run, RunConfig)
    assert run.model.codec.scales == (1, 100) and run.model.prior is None
    assert type(run.optimizer.learning_rate) is float


@pytest.mark.parametrize("name", SHIPPED)
def test_unils_config_lists_every_setting_with_its_meaning(name, capsys):
    assert main(["config", name, "--config.seed=7"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    listed = {line.partition("=")[0]: line.partition("=")[2] for line in lines}
    assert listed["seed"].startswith("7 ") and listed["data.store"].startswith('"STORE"')
    assert len(listed) == len(lines) > 60
    without = [line for line in lines if " # " not in line]
    assert not [line for line in without if not line.startswith(("model.wav", "model.rates", "model.num_heads"))]


def test_epochs_become_steps_of_the_data():
    config = run_config(values("baselines/dualtalk"))
    counted = count_epochs(config, 7)
    assert (counted.num_steps, counted.optimizer.lr_decay_every_steps) == (7000, 350)
    assert count_epochs(counted, 7) == counted
    steps = run_config(values("smoke/dualtalk"))
    assert count_epochs(steps, 7) == steps


@pytest.mark.parametrize(
    ("stage", "model", "system", "now"),
    [
        ("codec", {"codec": {"width": 8}, "dualtalk": None, "unitalker": None}, "unils", {"codec": {"width": 8}}),
        ("artalk", {"codec": {"width": 8}, "prior": {}}, "artalk", {"codec": {"width": 8}, "prior": {}}),
        ("dualtalk", {"codec": None, "dualtalk": {"width": 8}, "unitalker": None}, "dualtalk", {"width": 8}),
    ],
)
def test_a_run_that_was_saved_without_its_system_is_read(stage, model, system, now):
    found = current_run({"stage": stage, "model": model})
    assert (found["system"], found["model"]) == (system, now)
    assert current_run(found) == found


def test_sampling_by_scale_is_read_and_must_be_of_the_codecs_scales():
    config = load_config("smoke/dialogue")
    override(config, ["data.store=store", "sampling.cfg=(1, 1.5, 2, 3, 4)"])
    run = run_config(config.to_dict())
    assert run.sampling.cfg == (1.0, 1.5, 2.0, 3.0, 4.0)
    assert run_config(json.loads(json.dumps(run.to_dict()))).sampling == run.sampling
    override(config, ["model.codec.scales=(1, 100)"])
    with pytest.raises(UserError, match="sampling.tau has 5 values; give one, or 2, one for each scale of the model"):
        run_config(config.to_dict())


@pytest.mark.parametrize("scales", [0, 5])
def test_the_coarse_loss_is_of_fewer_scales_than_the_codec_has(scales):
    config = load_config("codec")
    override(config, ["data.store=store", f"loss.coarse_scales={scales}"])
    run_config(config.to_dict())  # without a weight, the number means nothing
    config.loss.coarse = 0.5
    problem = f"loss.coarse_scales must be from 1 to 4, fewer than the codec's scales, got {scales}"
    assert problem in error_of(run_config, config.to_dict())


@pytest.mark.parametrize(("name", "value"), [("smoke/ear", 1.5), ("smoke/ear", -0.1), ("smoke/codec", 0.1)])
def test_vocal_tracts_are_moved_within_bounds_and_for_the_ear_alone(name, value):
    config = load_config(name)
    override(config, ["data.store=store", f"noise.vocal_tract={value}"])
    assert f"noise.vocal_tract must be 0 to 1, and 0 in other stages than the ear's, got {value}" in error_of(
        run_config, config.to_dict()
    )
