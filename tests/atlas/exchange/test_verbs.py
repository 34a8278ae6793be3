"""What every export and every import does, from Python and from the shell."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atlases import content_within, planted_atlas
from gemscope.atlas.dashboard import Dashboard
from gemscope.atlas.exchange.folder import slugged
from gemscope.atlas.exchange.verbs import EXPORTS, export, import_atlas
from gemscope.atlas.reader import Atlas
from gemscope.cli.main import main
from gemscope.errors import FileError, InputError, NotFound
from neuronpedia_files import feature_line, imported


@pytest.mark.parametrize("format", EXPORTS)
def test_chosen_features_alone_come_out_and_nothing_is_left_of_a_failure(
    atlas: Atlas, tmp_path: Path, format: str, monkeypatch: Any
) -> None:
    with pytest.raises(NotFound, match="features 0 to 39"):
        export(atlas, tmp_path / "out", format=format, features=[1, 40])
    assert not list(tmp_path.iterdir())
    first = export(atlas, tmp_path / "one", format=format, features=[9, 3, 9])
    again = export(atlas, tmp_path / "two", format=format, features=[3, 9])
    assert content_within(first) == content_within(again)
    real = Atlas.__getitem__

    def breaks(self: Atlas, index: int) -> Dashboard:
        if index == 9:
            raise OSError(28, "No space left on device")
        return real(self, index)

    monkeypatch.setattr(Atlas, "__getitem__", breaks)
    with pytest.raises(FileError, match="no room left"):
        export(atlas, tmp_path / "three", format=format, features=[3, 9])
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}


@pytest.mark.parametrize("format", ["neuronpedia", "neuronpedia-upload", "anthropic", "site"])
def test_a_folder_that_exists_is_never_written_over(atlas: Atlas, tmp_path: Path, format: str) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileError, match="exists"):
        export(atlas, tmp_path / "mine", format=format)
    assert not list((tmp_path / "mine").iterdir())


def test_an_unknown_format_is_named(atlas: Atlas, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no format 'pdf': expected one of html"):
        export(atlas, tmp_path / "x", format="pdf")


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".", "..", "a\\b", "a" * 300])
def test_no_name_of_a_model_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    made = planted_atlas(tmp_path / "a.atlas", features=2, model_id=name)
    for format in ("neuronpedia", "site"):
        with pytest.raises(InputError, match="cannot name a folder"):
            export(made, tmp_path / "out", format=format)
    made.close()
    assert {path.name for path in tmp_path.iterdir()} == {"a.atlas"}
    assert "/" not in slugged(name)


@pytest.mark.parametrize("format", ["neuronpedia", "anthropic", "gemma-scope-2"])
def test_an_import_never_writes_over_anything(tmp_path: Path, format: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "in").mkdir()
    options = {"sae": "x"} if format == "gemma-scope-2" else {}
    path = Path(__file__) if format == "gemma-scope-2" else tmp_path / "in"
    with pytest.raises(InputError, match="exists"):
        import_atlas(format, path, tmp_path / "mine", **options)


def test_what_a_killed_import_left_is_in_nobody_s_way(tmp_path: Path) -> None:
    (tmp_path / ".in.atlas.gemscope").mkdir()
    (tmp_path / ".in.atlas.gemscope" / "intake.sqlite").write_bytes(b"not a database")
    with imported(tmp_path, features_0=[feature_line(0)]) as atlas:
        assert atlas[0].count == 10
    assert {one.name for one in tmp_path.iterdir()} == {"v1", "in.atlas"}


def test_the_shell_exports_and_imports(atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, back = tmp_path / "v1", tmp_path / "back.atlas"
    assert main(["export", str(atlas.folder), "--format", "neuronpedia", "-o", str(out)]) == 0
    assert main(["import", "neuronpedia", str(out), "-o", str(back), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["features"], told["missing"]) == (len(atlas), "")
    assert main(["export", str(back), "--format", "csv", "-o", str(tmp_path / "x.csv"), "--features", "1,3-5"]) == 0
    assert (tmp_path / "x.csv").read_text(encoding="utf-8").startswith("index,label,")
    assert main(["export", str(tmp_path / "none"), "--format", "csv", "-o", str(tmp_path / "y.csv")]) == 1
    assert "no atlas" in capsys.readouterr().err
    with pytest.raises(SystemExit) as wrong:
        main(["export", str(back), "--format", "csv", "-o", "y", "--features", "a-b"])
    assert wrong.value.code == 2
    with pytest.raises(SystemExit):
        main(["import", "gemma-scope-2", "x", "-o", "y"])


def test_asking_what_can_be_exchanged_loads_nothing_heavy() -> None:
    code = (
        "import sys, gemscope.cli.exchange, gemscope.atlas.exchange.verbs\n"
        "heavy = [name for name in ('torch', 'numpy', 'jinja2', 'pyarrow') if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
