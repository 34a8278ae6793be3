"""A scope's manifest: what is written is what is read, and what is no manifest is told in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemscope.activations.site import Site
from gemscope.errors import CorruptFile, NotFound
from gemscope.features.scope_manifest import (
    Failed,
    Made,
    Manifest,
    Text,
    place_of,
    read_scope,
    width_label,
    write_scope,
)

MANIFEST = Manifest(
    model="HuggingFaceTB/SmolLM2-135M-Instruct",
    revision=None,
    corpus=Text(name="the bundled sample", digest="0" * 64),
    versions={"gemscope": "0.1.0"},
    recipe='sites = ["*.res"]\n',
    saes=(
        Made(path="res/layer_3/width_2k/average_l0_32", site="3.res", site_out="3.res", width=2048, l0=32.0),
        Made(path="transcoder/layer_3/width_2k/average_l0_32", site="3.transcoder", site_out="3.mlp", width=2048, l0=32.4),
    ),
    failed=(Failed(site="4.res", width=2048, reason="the loss is not finite"),),
)  # fmt: skip


def test_a_manifest_that_was_written_is_read(tmp_path: Path) -> None:
    write_scope(replace(MANIFEST, saes=()), tmp_path)
    write_scope(MANIFEST, tmp_path)
    assert read_scope(tmp_path) == MANIFEST
    assert [path.name for path in tmp_path.iterdir()] == ["scope.json"]
    stored = json.loads((tmp_path / "scope.json").read_text())
    assert list(stored) == ["format", "model", "revision", "corpus", "versions", "recipe", "saes", "failed"]
    assert list(stored["saes"][0]) == ["path", "site", "site_out", "width", "l0"]
    assert stored["format"] == 1


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("format",), 2, "format 2, this version reads 1: update gemscope"),
        (("model",), 3, '"model" is 3'),
        (("other",), 3, '"other" is not known'),
        (("saes", 0, "path"), "../elsewhere", "within the scope"),
        (("saes", 0, "path"), "/etc", "within the scope"),
        (("saes", 0, "path"), "", "within the scope"),
        (("saes", 0, "path"), "a\\b", "within the scope"),
        (("saes", 0, "path"), "transcoder/layer_3/width_2k/average_l0_32", "one folder for two SAEs"),
        (("saes", 0, "site"), "3.nothing", "no site called 'nothing'"),
        (("saes", 1, "site_out"), "res", "needs a layer"),
        (("saes", 0, "width"), 0, "whole number from 1"),
        (("saes", 0, "l0"), "many", '"saes[0].l0" is "many"'),
    ],
)
def test_what_is_no_manifest_is_told_in_one_line(tmp_path: Path, place: tuple[Any, ...], value: Any, said: str) -> None:
    write_scope(MANIFEST, tmp_path)
    stored = json.loads((tmp_path / "scope.json").read_text())
    inside = stored
    for step in place[:-1]:
        inside = inside[step]
    inside[place[-1]] = value
    (tmp_path / "scope.json").write_text(json.dumps(stored))
    with pytest.raises(CorruptFile) as raised:
        read_scope(tmp_path)
    assert said in str(raised.value)


def test_a_folder_without_a_manifest_is_no_scope(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no scope in .*: it has no scope\.json"):
        read_scope(tmp_path)


@given(st.integers(1, 1 << 22))
def test_the_label_of_a_width_is_that_width_alone(width: int) -> None:
    label = width_label(width)
    sizes = {"m": 1 << 20, "k": 1 << 10}
    back = int(label.rstrip("km")) * sizes.get(label[-1], 1)
    assert back == width
    assert len(label) <= len(str(width))


def test_folders_are_named_as_in_gemma_scope() -> None:
    assert place_of(Site(20, "res"), 16384, 71.4) == "res/layer_20/width_16k/average_l0_71"
    assert place_of(Site(3, "transcoder"), 1 << 20, 30) == "transcoder/layer_3/width_1m/average_l0_30"
    assert place_of(Site(None, "embed"), 4096, 6) == "embedding/width_4k/average_l0_6"
    assert place_of(Site(3, "mid"), 5000, 6) == "mid/layer_3/width_5000/average_l0_6"
