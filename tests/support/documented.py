"""The commands of the documentation, as a user would copy them."""

import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]


def commands(page: str, heading: str) -> list[list[str]]:
    """The words of each `unils` command in the first indented block under a heading, without `unils`."""
    section = (ROOT / "docs" / page).read_text().partition(f"\n## {heading}\n")[2]
    assert section, f"docs/{page} has no section {heading}"
    lines = section.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("    "))
    block = []
    for line in lines[first:]:
        if not line.startswith("    "):
            break
        block.append(line)
    words = [shlex.split(line, comments=True) for line in "\n".join(block).replace("\\\n", " ").splitlines()]
    assert all(line[0] == "unils" for line in words)
    return [line[1:] for line in words]
