"""The live page: its files for the server, and as a folder for another web server."""

import html
import importlib.resources
import json
from pathlib import Path

from unils_jax.errors import UserError
from unils_jax.face.standin import standin_asset
from unils_jax.files import write_text
from unils_jax.motion import STANDIN_SHAPES
from unils_jax.outputs.drawn_head import drawn_head
from unils_jax.outputs.page import packed_head, page_script
from unils_jax.outputs.serving.app import POLICY

_SCRIPTS = ("live.js", "capture.js")
_OTHER_BASIS = "The model has the {} basis, this head has not: only jaw, gaze and head move."


def page_files(expression_basis: str, server: str = "") -> dict[str, tuple[str, str]]:
    """Returns media type and text of each file of the page, by its path on the server.

    Raises UserError where the scripts have not been built.

    Args:
        expression_basis: The basis of the model whose motion is shown.
        server: Address of the server's streams, `wss://host`; "" is the one that the page is from.
    """
    _, licence = page_script()
    folder = importlib.resources.files("unils_jax.outputs.viewer") / "dist"
    scripts = {}
    for name in _SCRIPTS:
        if not (folder / name).is_file():
            raise UserError("the live page's script is not built: run `make viewer` (needs Node 20.19 or newer)")
        scripts[f"/{name}"] = ("text/javascript; charset=utf-8", (folder / name).read_text(encoding="utf-8"))
    asset = standin_asset()
    fits = expression_basis == asset.name
    num_expression = asset.skinning.num_expression if fits else 0
    lids = [list(STANDIN_SHAPES).index(name) for name in ("blink_left", "blink_right")]
    data = {
        "head": packed_head(drawn_head(asset), num_expression),
        "numExpression": num_expression,
        "blink": {"channels": lids, "full": STANDIN_SHAPES["blink_left"]} if fits else None,
        "notices": [] if fits else [_OTHER_BASIS.format(expression_basis)],
        "server": server,
    }
    embedded = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    # A page of another server has no header of ours; frame-ancestors works in headers alone.
    policy = POLICY.replace("connect-src 'self'", f"connect-src {server}" if server else "connect-src 'self'")
    policy = policy.replace("; frame-ancestors 'none'", "")
    page = (
        "<!doctype html>\n"
        f"<!-- The script holds three.js:\n\n{licence.replace('--', '- -')}-->\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>UniLS, live</title>\n'
        '<link rel="icon" href="data:,">\n</head>\n<body>\n'
        f'<script type="application/json" id="page-data">{embedded}</script>\n'
        '<script src="live.js"></script>\n</body>\n</html>\n'
    )
    return {"/": ("text/html; charset=utf-8", page), **scripts}


def write_page(folder: str, expression_basis: str, server: str) -> list[str]:
    """Writes the page for another web server; returns the files' names."""
    files = page_files(expression_basis, server)
    names = ["index.html" if path == "/" else path.lstrip("/") for path in files]
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, (_, text) in zip(names, files.values(), strict=True):
        write_text(Path(folder) / name, text)
    return names
