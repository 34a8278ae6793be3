"""The documentation site, as far as it can be told without building it (`make site` does, and a warning ends it)."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

import gemscope as gs
from gemscope.cli.main import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def website() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tools" / "website.py"))


def _places(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [
        place for item in nav for one in (item.values() if isinstance(item, dict) else [item]) for place in _places(one)
    ]


def test_every_page_has_one_place_in_the_navigation(website: dict[str, Any]) -> None:
    places = _places(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    lie = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    beside = {at for at in website["BESIDE"].values() if at.endswith(".md")}
    assert sorted(places) == sorted(lie | set(website["made"]()) | set(website["pages_of_notebooks"]()) | beside)


def test_every_public_name_stands_on_the_page_of_its_folder(website: dict[str, Any]) -> None:
    pages = website["reference"]()
    for name in set(gs.__all__) - {"__version__", "errors"}:
        value = getattr(gs, name)
        (page,) = [at for at, text in pages.items() if f"heading: gs.{name}\n" in text]
        assert value.__module__.split(".")[1] == page.removeprefix("api/").removesuffix(".md")
        assert f"::: {value.__module__}.{value.__name__}\n" in pages[page]


@pytest.mark.parametrize("words", [[], ["look"], ["train"], ["atlas", "merge"], ["list", "add"]])
def test_the_page_of_the_shell_is_what_help_says(
    words: list[str], website: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(website["WIDTH"]))
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    said = capsys.readouterr().out.rstrip()
    assert f"\n## {' '.join(['gemscope', *words])}\n\n```text\n{said}\n```\n" in website["shell"]().replace("###", "##")


def test_links_lead_somewhere_and_those_beyond_the_site_to_the_repository(website: dict[str, Any]) -> None:
    relinked = website["relinked"]
    for page in (ROOT / "docs").rglob("*.md"):
        relinked(page.read_text(encoding="utf-8"), str(page.relative_to(ROOT)), str(page.relative_to(ROOT / "docs")))
    assert (
        relinked("[a](../src/gemscope#b)", "docs/atlas.md", "atlas.md")
        == f"[a]({website['REPOSITORY']}/src/gemscope#b)"
    )
    assert relinked("[a](docs/atlas.md#labels)", "CHANGELOG.md", "changelog.md") == "[a](atlas.md#labels)"
    assert relinked("[a](../CONTRIBUTING.md)", "docs/x.md", "x.md") == "[a](contributing.md)"
    assert relinked("[a](results/scaling.svg)", "benchmarks/README.md", "benchmarks.md") == "[a](scaling.svg)"
    assert relinked("[a](docs/tutorial.ipynb)", "README.md", "index.md") == "[a](tutorial.md)"
    assert relinked("[a](https://a.b/c)", "docs/x.md", "x.md") == "[a](https://a.b/c)"
    with pytest.raises(SystemExit, match=r"docs/x\.md: a link leads to docs/no\.md"):
        relinked("[a](no.md)", "docs/x.md", "x.md")


def test_a_notebook_s_page_has_its_text_its_code_and_what_it_showed(website: dict[str, Any]) -> None:
    page = website["pages_of_notebooks"]()["tutorial.md"]
    assert page.startswith("# From a prompt to its features\n\n")
    assert "\n\n[As a notebook](tutorial.ipynb)" in page
    assert "```python\nfeatures = sae.encode(acts)" in page
    assert "````text\nexplained variance 0." in page
    html = page.partition("<div class='shown'>")[2].partition("\n</div>\n\n")[0]
    assert "<table" in html
    assert "\n\n" not in html


@pytest.mark.parametrize(
    "html",
    [
        '<script async src="https://cdn.example/a.js"></script>',
        "<img alt=x src=//cdn.example/a.png>",
        '<link href="https://fonts.example/css" rel="stylesheet">',
        '<link rel="preconnect" href="https://fonts.example">',
        "<style>@import url('https://fonts.example/a.css');</style>",
        '<p style="background: url(https://cdn.example/a.png)">',
    ],
)
def test_what_a_page_would_fetch_from_elsewhere_is_found(html: str, website: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        f"<a href='https://elsewhere.example'>a link</a><script src='own.js'></script>{html}"
    )
    (found,) = website["fetched"](tmp_path)
    assert ".example" in found
    assert "elsewhere" not in found
