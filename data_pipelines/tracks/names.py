"""The names that trackers give to their arrays, by part of the face, and whole layouts of them."""

from dataclasses import dataclass

EXPRESSION_KEYS = (
    "exp",
    "expcode",
    "exp_code",
    "exp_params",
    "expression",
    "expression_params",
    "expr",
    "expressions",
    "expression_code",
)
POSE_KEYS = ("pose", "posecode", "pose_code", "pose_params", "full_pose")
HEAD_KEYS = (
    "global_pose",
    "globalpose",
    "global_orient",
    "global_rotation",
    "rotation",
    "head_pose",
    "head_rotation",
    "head",
)
NECK_KEYS = ("neck_pose", "neck", "neck_rotation", "neckpose")
JAW_KEYS = ("jaw", "jaw_pose", "jaw_params", "jaw_code", "jawpose")
EYES_KEYS = ("eyes_pose", "eye_pose", "eyes")
LEFT_EYE_KEYS = ("leye_pose", "left_eye_pose", "left_eye")
RIGHT_EYE_KEYS = ("reye_pose", "right_eye_pose", "right_eye")
RATE_KEYS = ("fps", "frame_rate", "framerate", "video_fps")
TIME_KEYS = ("time_s", "times", "timestamps")
VALID_KEYS = ("valid", "is_valid", "detected", "tracked", "success", "confidence")
TRACK_KEYS = ("track_id", "face_id", "track_ids", "identity")
SHAPE_KEYS = ("shape", "shapecode", "shape_code", "shape_params", "betas")

# Parts of a mapping: what is taken of a file, by a name that flags use.
ROTATIONS = ("head", "neck", "jaw", "eyes", "left_eye", "right_eye")
KEYS = {
    "expression": EXPRESSION_KEYS,
    "pose": POSE_KEYS,
    "head": HEAD_KEYS,
    "neck": NECK_KEYS,
    "jaw": JAW_KEYS,
    "eyes": (*EYES_KEYS, "gaze"),
    "left_eye": LEFT_EYE_KEYS,
    "right_eye": RIGHT_EYE_KEYS,
    "fps": RATE_KEYS,
    "times": TIME_KEYS,
    "valid": VALID_KEYS,
    "track": TRACK_KEYS,
    "shape": SHAPE_KEYS,
}
# Why arrays of well-known names are not taken.
IGNORED = {
    "eyelids": "the 108 channels have no eyelids",
    "eyelid_params": "the 108 channels have no eyelids",
    "eyelid": "the 108 channels have no eyelids",
    "tex": "texture",
    "texcode": "texture",
    "light": "lighting",
    "lightcode": "lighting",
    "detailcode": "detail of the mesh",
    "static_offset": "detail of the mesh",
    "cam": "camera",
    "translation": "position of the head, which motion does not have",
    "transl": "position of the head, which motion does not have",
}


@dataclass(frozen=True)
class Layout:
    """The names and kinds of rotations of one tracker; names that are needed come first."""

    keys: dict[str, str]  # part -> name, or the end of a path of names
    needed: tuple[str, ...]  # parts without which a file is not of this layout
    kinds: dict[str, str]  # part -> kind of its rotations; others are found out by their width


# In the order in which `auto` tries them.
LAYOUTS = {
    "mica": Layout(
        {"expression": "flame/exp", "jaw": "flame/jaw", "eyes": "flame/eyes", "head": "camera/R"},
        ("expression", "jaw", "head"),
        {"jaw": "6d", "eyes": "6d", "head": "camera"},
    ),
    "emica": Layout(
        {"expression": "expcode", "head": "globalpose", "jaw": "jawpose"}, ("expression", "head", "jaw"), {}
    ),
    "smirk": Layout(
        {"expression": "expression_params", "head": "pose_params", "jaw": "jaw_params"},
        ("expression", "head", "jaw"),
        {},
    ),
    "vhap": Layout(
        {
            "expression": "expr",
            "head": "rotation",
            "neck": "neck_pose",
            "jaw": "jaw_pose",
            "eyes": "eyes_pose",
        },
        ("expression", "head", "jaw"),
        {},
    ),
    "flame": Layout(
        {
            "expression": "expression",
            "head": "global_orient",
            "neck": "neck_pose",
            "jaw": "jaw_pose",
            "left_eye": "leye_pose",
            "right_eye": "reye_pose",
        },
        ("expression", "head", "jaw"),
        {},
    ),
    "emoca": Layout({"expression": "expcode", "pose": "posecode"}, ("expression", "pose"), {}),
    "deca": Layout({"expression": "exp", "pose": "pose"}, ("expression", "pose"), {}),
}
