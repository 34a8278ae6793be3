"""An atlas with known answers: to be read by all, or copied to be damaged, labelled or locked."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlases import planted_atlas
from gemscope.atlas.reader import Atlas


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Atlas]:
    """For reading alone."""
    with planted_atlas(tmp_path_factory.mktemp("planted") / "atlas") as atlas:
        yield atlas


@pytest.fixture
def copy(planted: Atlas, tmp_path: Path) -> Path:
    """A folder to damage, or to label."""
    return Path(shutil.copytree(planted.folder, tmp_path / "copy"))


@pytest.fixture
def reachable(planted: Atlas) -> Iterator[Path]:
    """A copy in a place that everybody may enter, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield Path(shutil.copytree(planted.folder, folder / "atlas"))
    shutil.rmtree(folder)
