"""An atlas, and a server of it with its model and without."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from served import here, planted, reader


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("atlases") / "atlas")


@pytest.fixture(scope="module")
def live(folder: Path) -> Iterator[TestClient]:
    with reader(folder, models=here) as client:
        yield client


@pytest.fixture(scope="module")
def still(folder: Path) -> Iterator[TestClient]:
    with reader(folder) as client:
        yield client
