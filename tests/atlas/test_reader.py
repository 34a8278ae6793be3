"""An atlas as a whole: what it is of, and how it shows itself."""

from __future__ import annotations

import html
from dataclasses import asdict
from pathlib import Path

from atlases import PLAN, change_json, manifest_of
from gemscope.atlas.reader import Atlas
from gemscope.atlas.verify import verify
from gemscope.atlas.writer import Writer


def test_an_atlas_of_no_text_at_all_opens(tmp_path: Path) -> None:
    with Writer(tmp_path / "a") as writer:
        with writer.finish(manifest_of(3, 0, 8)) as atlas:
            assert atlas[2].dead
            assert atlas[2].density == 0
            assert atlas.count() == 3
            assert verify(atlas.folder) == []


def test_an_atlas_says_what_it_is_of(planted: Atlas) -> None:
    assert str(planted).splitlines() == [
        "tests/Tiny-Model at 1.res, read through planted",
        "40 features: 35 living, 5 dead; 14 with a label",
        "3,019 counted tokens of 9 documents (planted)",
    ]
    assert repr(planted) == f"Atlas({planted.folder}, tests/Tiny-Model, planted, 40 features)"


def test_a_notebook_shows_it_escaped(copy: Path) -> None:
    change_json(copy, model="<script>alert(1)</script>")
    with Atlas(copy) as atlas:
        shown_ = atlas._repr_html_()
    assert "<script>" not in shown_
    assert html.escape("<script>alert(1)</script>") in shown_


def test_the_manifest_comes_back_as_it_was_written(planted: Atlas) -> None:
    assert planted.manifest == PLAN.manifest()
    assert asdict(planted.manifest)["parts"][0]["masked"] == {"special": 48, "padding": 5}
    assert (planted.manifest.rows, planted.manifest.documents) == (48, 9)
