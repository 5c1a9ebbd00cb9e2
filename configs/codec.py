r"""Stage 1, the motion codec, at the paper's size: 29.5 M parameters.

    unils train --config codec --workdir runs/codec --config.data.store=DIR \
        --config.head=generic_model.pkl

Data: unpaired motion (546 h in the paper). Cost in the paper: 100k-200k steps of 64 windows.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = ml_collections.ConfigDict()
    config.system = "unils"
    config.stage = "codec"
    config.num_steps = 200_000
    config.seed = 0  # of initialisation, data order and noise
    config.expression_basis = "flame"  # must equal the store's
    config.head = ""  # FLAME's generic_model.pkl, or "standin"; empty trains without mesh and lip losses
    config.audio_features = ""  # folder of `unils data encode`; empty: the encoder runs in every step
    config.audio_encoder = ""  # folder or hub name of a published encoder; empty: none
    config.data = {
        "store": "",  # a folder that `unils data` wrote, or its URL
        "stores": (),  # several instead, each "PATH=WEIGHT"
        "batch_size": 64,  # windows, over all devices and processes
        "num_workers": 4,  # processes that cut windows; 0: the training process does
        "max_bad_records": 0,  # unreadable records before the run stops
    }
    config.data.centre_head = True  # False: head rotation as it was, for ARTalk
    config.model = {
        "codec": {"code_dim": 32, "scales": (1, 5, 25, 50, 100), "width": 512, "depth": 8, "num_heads": 8},
    }
    # Weights of the codec's terms, see `CodecLossWeights`; mesh and lips need a head. The last
    # two lines are ours, for blinks and eyes.
    config.loss = {
        "vq": 1.0, "motion": 1.0, "pose": 8.0, "velocity": 5.0, "smooth": 0.5, "mesh": 2.0, "lips": 0.1,
        "eyes": 0.0, "motion_square": 0.0, "motion_velocity": 0.0,
        "coarse": 0.0, "coarse_scales": 3,
    }  # fmt: skip
    # Of the generators: rates at which a sample loses a condition, the largest bit-flip rate, and
    # the rate at which the previous motion has passed the codec.
    config.noise = {"style_drop": 0.1, "prev_drop": 0.1, "audio_drop": 0.1, "max_flip_percent": 30, "prev_coded": 0.0}
    config.noise.level_db = (0.0, 0.0)  # each track's level is moved at random between these, in dB; equal: it is not
    # Of the ear: a track's frequencies are multiplied by exp of what is drawn from +-this; 0: not.
    config.noise.vocal_tract = 0.0
    config.train = {
        "compute_dtype": "float32",  # or "bfloat16"; weights, moments, softmax, norms and losses are float32 either way
        "remat": False,  # True: less memory, blocks are computed twice
        "remat_policy": "nothing_saveable",  # or "dots_saveable", "offload": what remat keeps
        "scan_layers": False,  # True: compiles one block for all
        "accumulate_steps": 1,  # parts that a batch is processed in
        "mesh_frames": 10,  # frames of a window whose vertices are in memory at once
    }
    config.mesh = {
        "data": 0,  # devices that hold copies of the parameters; 0: all that fsdp leaves
        "fsdp": 1,  # devices that share the large parameters
        "slices": 0,  # groups of devices with a slow network between them; 0: as the devices say
    }
    config.optimizer = {
        "learning_rate": 1e-4,
        "warmup_steps": 1000,
        "decay_steps": config.get_oneway_ref("num_steps"),
        "final_factor": 0.1,  # of the rate, at its start and at decay_steps
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,  # 0: gradients are not clipped
        "ema_decay": 0.9999,  # of the averaged weights, which are evaluated; 0: the weights themselves
        "release_devices": 1,  # n: the release's rule for n devices, steps / n, rate x n, EMA decay ^ n
    }
    config.log_every = 100
    config.eval_every = 5_000  # validation losses
    config.eval_batches = 16
    config.checkpoint_every = 5_000
    config.keep_checkpoints = 3  # the newest ones
    # Prior and dialogue: decode and score held-out conversations every so many steps; 0: never.
    config.probe_every = 0
    config.probe_conversations = 2
    config.probe_clips = False  # and render the first of them
    config.trainable = ""  # pattern of the parameters that train; empty: the stage's own
    config.max_bad_steps = 10  # end after so many steps in a row whose loss or gradient is not finite
    return config
