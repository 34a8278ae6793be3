"""gemscope catalog: addresses come whole, whatever prints them."""

import json
import os
import sys
from pathlib import Path

import pytest

from gemscope.activations.site import Site
from gemscope.cli.main import main
from gemscope.features.catalog import catalog
from gemscope.features.files.saving import save_sae
from gemscope.features.scope_manifest import place_of
from gemscope.testing import planted_sae
from peers import FORMATS


def test_a_pipe_gets_rows_with_tabs_and_what_is_said_beside_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["catalog", "--offline", "--model", "gemma-2-9b", "--limit", "0"]) == 0
    out, err = capsys.readouterr()
    rows = [line.split("\t") for line in out.splitlines()]
    found = catalog("gemma-2-9b", online=False)
    assert rows[0] == ["address", "model", "site", "width", "L0", "Neuronpedia"]
    assert [row[0] for row in rows[1:]] == [entry.address for entry in found]
    assert {len(row) for row in rows} == {6}
    assert "Next: what does it see in a text?  gemscope look google/gemma-2-9b" in err


@pytest.mark.parametrize("columns", [20, 80, 120, 200])
def test_a_terminal_gets_whole_addresses_however_narrow(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((columns, 24)))
    assert main(["catalog", "--offline", "--canonical", "--limit", "30"]) == 0
    out = capsys.readouterr().out
    assert "…" not in out
    shown = catalog(canonical=True, online=False)[:30]
    lines = out.splitlines()
    assert all(any(line.split()[:1] == [entry.address] for line in lines) for entry in shown)
    if columns == 200:
        assert lines[0].split() == ["address", "model", "site", "width", "L0", "Neuronpedia"]
    else:  # below each other: no line is wider than what it has to say
        assert lines[0] == shown[0].address


def test_what_cannot_be_opened_is_marked_and_never_proposed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["catalog", "--offline", "--model", "gpt2-small", "--width", "24k", "--limit", "1"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[1].split("\t")[2] == "(not opened here)"
    assert main(["catalog", "--offline", "--model", "gpt2-small", "--width", "24k", "--limit", "2"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[2].split("\t")[0] in err


def test_catalog_shows_one_scope(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for layer, l0 in ((1, 9), (1, 30), (2, 30)):
        save_sae(planted_sae(site=f"{layer}.res").sae, tmp_path / place_of(Site(layer, "res"), 64, l0))
    assert main(["catalog", str(tmp_path)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split() for line in told[1:4]] == [["site", "64"], ["1.res", "9", "·", "30"], ["2.res", "30"]]
    assert main(["catalog", str(tmp_path), "--site", "1.res", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [(one["site"], one["width"], one["l0"]) for one in facts["saes"]] == [
        ("1.res", 64, 9.0),
        ("1.res", 64, 30.0),
    ]
    assert main(["catalog", "google/gemma-scope-2b-pt-res", "--layer", "20", "--width", "65k", "--offline"]) == 0
    assert "20.res  20 · 34 · 61 · 114* · 221" in capsys.readouterr().out
    assert main(["catalog", "google/gemma-scope-2b-pt-res", "--offline"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[1].split() == ["site", "4k", "16k", "32k", "65k", "131k", "262k", "524k", "1m"]
    assert max(map(len, told)) > 160  # a row is a line
    assert main(["catalog", str(tmp_path), "--width", "65"]) == 1
    assert "is 65 wide: the widths are 64" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["catalog", str(tmp_path), "--l0", "9"])


def test_info_of_several_saes_shows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for layer in (1, 2):
        save_sae(planted_sae(site=f"{layer}.res").sae, tmp_path / place_of(Site(layer, "res"), 64, 9))
    for address in (str(tmp_path), f"{tmp_path}/res/*/*/*"):
        assert main(["info", address]) == 0
        assert "2 SAEs, 2 sites, widths 64" in capsys.readouterr().out
    assert main(["info", "mwhanna/qwen3-4b-transcoders", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["saes"]) == 36
    assert main(["info", str(tmp_path / place_of(Site(1, "res"), 64, 9))]) == 0
    assert "d_sae" in capsys.readouterr().out


def test_info_tells_of_a_cross_layer_transcoder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(FORMATS / "circuit_tracer" / "clt"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["layers"], facts["sites"], facts["sites_out"], facts["d_sae"]) == (
        3,
        "0.mid to 2.mid",
        "0.mlp to 2.mlp",
        192,
    )


def test_info_says_what_each_slice_of_an_sae_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "smollm2", "--sae-device", "cpu,cpu,cpu", "--json"]) == 0
    sliced = json.loads(capsys.readouterr().out)
    assert main(["info", "smollm2", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    slices = sliced.pop("slices")
    assert sliced == whole
    assert len(slices) == 3
    assert all(one.startswith("cpu: ") and "features" in one for one in slices)
    assert main(["info", "smollm2", "--sae-device", "cpu,cuda:99"]) == 1
    assert "device 'cuda:99' cannot be used" in capsys.readouterr().err
