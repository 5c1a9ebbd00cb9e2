"""The live page that tests serve to browsers."""

import pytest

from unils_jax.errors import UserError


@pytest.fixture(scope="session")
def files() -> dict[str, tuple[str, str]]:
    # The module is imported where its extra is installed; tests next to this skip themselves elsewhere.
    from unils_jax.outputs.serving.page import page_files  # noqa: PLC0415 (see above)

    try:
        return page_files("standin")
    except UserError as error:
        pytest.skip(str(error))
