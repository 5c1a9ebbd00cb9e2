"""The goldens' FLAME-shaped asset (synthetic arrays, nothing of FLAME) as a FlameAsset."""

import json

import numpy as np

from unils_jax.face.flame import NUM_IDENTITY, FlameAsset


def golden_arrays(golden) -> dict[str, np.ndarray]:
    """The arrays under FLAME's own names, float32; `shapedirs` with its 300 zero identity columns."""
    folder = golden("flame_metrics").folder.parent / "flame_asset"
    scale = {k: np.float32(v) for k, v in json.loads((folder / "config.json").read_text())["scale"].items()}
    ints = np.load(folder / "flame_int.npz", allow_pickle=False)
    expression = ints["shapedirs_exp_i8"] * scale["s"]
    identity = np.zeros((*expression.shape[:2], NUM_IDENTITY), np.float32)
    return {
        "v_template": ints["v_template_i16"] * scale["v"],
        "shapedirs": np.concatenate([identity, expression], axis=2),
        "posedirs": ints["posedirs_i8"] * scale["p"],
        "J_regressor": ints["J_regressor_i16"] * scale["J"],
        "weights": ints["weights_i16"] * scale["W"],
        "f": ints["faces_i16"].astype(np.int32),
        "kintree_table": np.array([[2**32 - 1, 0, 1, 1, 1], [0, 1, 2, 3, 4]], np.int64),
    }


def golden_flame_asset(golden, *, lips: np.ndarray | None = None, upper_face: np.ndarray | None = None) -> FlameAsset:
    """The asset with the golden's own region lists (`syn_*_indices` of `flame_metrics`) or the ones given."""
    arrays, inputs = golden_arrays(golden), golden("flame_metrics").inputs
    return FlameAsset(
        v_template=arrays["v_template"],
        expression_basis=arrays["shapedirs"][:, :, NUM_IDENTITY:],
        posedirs=arrays["posedirs"],
        j_regressor=arrays["J_regressor"],
        weights=arrays["weights"],
        faces=arrays["f"],
        lips=np.asarray(inputs["syn_lip_indices"] if lips is None else lips),
        upper_face=np.asarray(inputs["syn_upper_indices"] if upper_face is None else upper_face),
        name="flame",
    )
