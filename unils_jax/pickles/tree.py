"""Containers of untrusted files copied, so that no part is in them twice."""

from collections.abc import Callable

from unils_jax.errors import UserError

MAX_ITEMS = 4_000_000  # more than the opcodes of a pickle can make without one part in many places


def expanded(value: object, leaf: Callable[[object], object]) -> object:
    """Returns dicts and lists (plain tuples as lists) of `leaf` of all that is in them.

    A pickle can hold one list in many places, and so stand for far more than its bytes: raises
    UserError beyond `MAX_ITEMS`.
    """
    items = 0

    def copied(item: object) -> object:
        nonlocal items
        items += 1
        if items > MAX_ITEMS:
            raise UserError(f"a pickle unfolds to over {MAX_ITEMS} items; save arrays, not lists of numbers")
        if isinstance(item, dict):
            return {key: copied(inside) for key, inside in item.items()}
        return [copied(inside) for inside in item] if type(item) in (list, tuple) else leaf(item)

    return copied(value)
