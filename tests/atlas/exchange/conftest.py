"""An atlas to take out."""

import pytest

from gemscope.atlas.reader import Atlas


@pytest.fixture(scope="session")
def atlas(planted: Atlas) -> Atlas:
    return planted
