"""Gathers the pages of the site in build/docs: docs/ and the Markdown files at the top of the repository.

python docs/stage.py
"""

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
STAGE = ROOT / "build" / "docs"
ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "THIRD_PARTY.md": "third_party.md",
}


def main() -> None:
    """Writes build/docs anew."""
    shutil.rmtree(STAGE, ignore_errors=True)
    shutil.copytree(ROOT / "docs", STAGE, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name, page in ROOT_PAGES.items():
        # Links of the repository's top become links within the site.
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        for other, other_page in ROOT_PAGES.items():
            text = text.replace(f"]({other}", f"]({other_page}")
        (STAGE / page).write_text(text, encoding="utf-8")
    # Zensical's strict mode finds broken links; pictures it passes over.
    for page in STAGE.glob("*.md"):
        for picture in re.findall(r"\]\(([^):]+\.(?:png|svg))\)", page.read_text(encoding="utf-8")):
            if not (STAGE / picture).exists():
                sys.exit(f"{page.name} shows {picture}, which is not in docs/")


if __name__ == "__main__":
    main()
