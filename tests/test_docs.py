"""What docs/atlas.md says can be done is done as it says; its pictures are there."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gemscope.cli.main import parser

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "atlas.md").read_text(encoding="utf-8")


def _commands() -> Iterator[str]:
    for page in (PAGE, (ROOT / "README.md").read_text(encoding="utf-8")):
        for line in page.replace("\\\n", " ").splitlines():
            if re.match(r" {4}gemscope \w", line):
                yield line.strip()


@pytest.mark.parametrize("command", sorted(set(_commands())))
def test_the_shell_takes_every_command_as_it_is_written(command: str) -> None:
    words = shlex.split(command, comments=True)[1:]
    assert parser().parse_args(words).run


_LESS = """
import functools
import gemscope as gs

few = gs.Corpus.of([document.text[:500] for document in gs.Corpus.sample().take(3)])
gs.Corpus.sample = lambda: few
gs.DescribeConfig = functools.partial(gs.DescribeConfig, logits=0, neighbours=0, partners=0)
"""
"""Less text, and nothing of what weights alone say: the test shows that the code runs, not how long it takes."""


def test_the_python_of_the_atlas_s_page_runs(tmp_path: Path) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    # In a process of its own: without the checks of shapes, which see each of 6,144 features many times.
    ran = subprocess.run(
        [sys.executable, "-c", _LESS + code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "6,144 features" in ran.stdout
    assert "label='good wishes'" in ran.stdout
    assert "http://127.0.0.1:" in ran.stdout
    assert (tmp_path / "my.csv").read_text(encoding="utf-8").count("\n") >= 6144
    assert "2295" in (tmp_path / "some.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["README.md", "docs/atlas.md"])
def test_pictures_and_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r'src="([^"]+\.png)"', text)
    assert found
    for link in found:
        if "://" not in link:
            assert (path.parent / link).exists(), link
    for picture in (ROOT / "docs" / "pictures").glob("*.png"):
        assert picture.stat().st_size < 150_000
        assert f"pictures/{picture.name}" in PAGE
