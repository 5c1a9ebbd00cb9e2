"""How docstrings speak: CONTRIBUTING, "How we write", rules 1 and 5."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for folder in ("unils_jax", "data_pipelines") for path in (ROOT / folder).rglob("*.py"))

# First words that end as a verb in the third person does and are none.
NO_VERBS = set(
    "Always Arrays As Bits Channels Features Figures Files Frames Indices Is Its Keys Lines Logits Metrics Motions"
    " Names Parameters Records Rows Settings Statistics This Tokens Values Vertices Weights Windows Words".split()
)
DIALECT = re.compile(r"\b(beside|deaf|heard|nobody|told|whoever|in not a bit|of its own)\b", re.IGNORECASE)


def begins_with_a_verb(docstring: str) -> bool:
    """Decides whether the first word is a verb in the third person, as "Decodes"."""
    first = docstring.split()[0]
    return re.fullmatch(r"[A-Z][a-z-]*s", first) is not None and first not in NO_VERBS


def is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Decides whether a function reads as an attribute, which a noun phrase may describe."""
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


def problems(path: Path) -> Iterator[str]:
    """Yields what is wrong with the docstrings of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        docstring = ast.get_docstring(node) or ""
        where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and docstring and not is_property(node):
            if not begins_with_a_verb(docstring):
                yield f"{where}: begin with a verb, as 'Returns': {docstring.splitlines()[0]}"
        for word in DIALECT.findall(docstring):
            yield f"{where}: say it without {word!r}"
        if re.search(r"(?:^|\. |\.\n)Of ", docstring):
            yield f"{where}: no sentence begins with 'Of'"


def test_docstrings_begin_with_a_verb_and_are_in_plain_english():
    assert FILES and [problem for path in FILES for problem in problems(path)] == []


@pytest.mark.parametrize(
    ("docstring", "is_one"),
    [("Decodes a chunk.", True), ("What the heads see.", False), ("Frames of a clip.", False), ("A clip.", False)],
)
def test_nouns_and_questions_are_no_verbs(docstring, is_one):
    assert begins_with_a_verb(docstring) is is_one
