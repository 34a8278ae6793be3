"""Which SAE an atlas is of, and that every report names features by it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import pytest
import torch

import gemscope as gs
from atlases import HOSTILE_LABEL, change_json, change_sql
from gemscope.atlas.bundled import BUNDLED
from gemscope.atlas.exchange.verbs import export, import_atlas
from gemscope.atlas.meaning import Meanings, labels
from gemscope.atlas.units import units_of
from gemscope.cli.main import main
from gemscope.errors import Mismatch
from gemscope.features.sae import SAEInfo
from gemscope.reports.dosing import dose
from gemscope.text.printable import readable
from neuronpedia_files import explanation_line, feature_line, imported
from served import MODEL, PROMPT, SAE, TEXT, planted

ADDRESS = "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"
ID = "gemma-2-2b/20-gemmascope-res-16k"


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gs.Atlas]:
    with gs.Atlas(planted(tmp_path_factory.mktemp("atlases") / "atlas", labelled=2)) as opened:
        yield opened


@pytest.fixture(scope="module")
def neuronpedia(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gs.Atlas]:
    said = [explanation_line(3, "words about rivers", typeName="np_max-act")]
    files = {"features_0": [feature_line(3)], "explanations_0": said}
    with imported(tmp_path_factory.mktemp("atlases"), **files) as opened:
        assert not opened.manifest.sae_digest
        yield opened


def sae_of(width: int = 12, site: str = "20.res", **info: str) -> gs.SAE:
    return gs.SAE(4, width, site=site, info=SAEInfo(**info))


@pytest.mark.parametrize(
    "info",
    [
        {"name": "mine", "neuronpedia_id": ID},
        {"name": ADDRESS, "neuronpedia_id": ID},
        {"name": ADDRESS},
        {"name": "mine", "neuronpedia_id": f"{ID}__l0-71"},
        {"name": "gemma-scope-2b-pt-res-canonical layer_20/width_16k/canonical"},
    ],
)
def test_an_imported_atlas_is_of_the_sae_of_that_name_whichever_of_its_names_is_given(
    info: dict[str, str], neuronpedia: gs.Atlas
) -> None:
    assert labels(sae_of(**info), [3, 4], neuronpedia) == {3: "words about rivers"}
    assert labels(sae_of(**info), [3, 4], str(neuronpedia.folder)) == {3: "words about rivers"}


@pytest.mark.parametrize(
    ("sae", "said"),
    [
        (sae_of(name="mine"), f"made of files about {ID}, and mine is nothing on Neuronpedia"),
        (sae_of(name="mine", neuronpedia_id=f"{ID}__l0-38"), "and mine is gemma-2-2b/20-gemmascope-res-16k__l0-38 on"),
        (sae_of(13, name=ADDRESS), "is of 12 features of .*, .* has 13"),
        (sae_of(site="19.res", name=ADDRESS), r"at 20\.res, .* reads 19\.res"),
    ],
)
def test_an_imported_atlas_of_another_sae_is_refused_with_what_tells_so(
    sae: gs.SAE, said: str, neuronpedia: gs.Atlas
) -> None:
    with pytest.raises(Mismatch, match=f"{said}.*: its labels are of other features"):
        labels(sae, [3], neuronpedia)


def test_what_was_exported_and_imported_again_has_shares_in_the_sae_s_own_units(tmp_path: Path) -> None:
    """Neuronpedia's activations are those of a decoder of norm 1, and the ids in such an atlas are its own."""
    longer = gs.SAE(SAE.d_in, SAE.d_sae, site="1.res", info=SAE.info)
    longer.load_state_dict(SAE.state_dict())
    longer.W_dec.mul_(4.0)
    planted(tmp_path / "a")
    change_json(tmp_path / "a", sae_digest=longer.digest)
    change_sql(tmp_path / "a", "UPDATE feature SET decoder_norm = 4")
    with gs.Atlas(tmp_path / "a") as ours:
        export(ours, tmp_path / "np", format="neuronpedia")
        with import_atlas("neuronpedia", tmp_path / "np", tmp_path / "b") as theirs:
            assert theirs.manifest.sae_digest == longer.digest
            assert theirs[5].max == pytest.approx(4 * ours[5].max)
            ids, given = np.array([5, 12]), np.array([1.0, 2.0])
            want = Meanings(ours, longer).shares(ids, given)
            assert Meanings(theirs, longer).shares(ids, given) == pytest.approx(want)
            units_of(ours, MODEL, longer)
            with pytest.raises(Mismatch, match=r"another tool's files.*no measure"):
                units_of(theirs, MODEL, longer)


def test_weights_decide_where_an_atlas_names_them(atlas: gs.Atlas) -> None:
    changed = gs.SAE(SAE.d_in, SAE.d_sae, site="1.res", info=replace(SAE.info, name=atlas.manifest.sae))
    with pytest.raises(
        Mismatch, match=f"made with planted .{SAE.digest[:12]}.*not with planted .{changed.digest[:12]}"
    ):
        labels(changed, [0], atlas)


def test_a_copy_of_the_bundled_sae_is_named_by_the_bundled_atlas_and_read_elsewhere_it_is_not(tmp_path: Path) -> None:
    gs.save_sae(gs.load_sae("smollm2"), tmp_path / "copy")
    copy = gs.load_sae(str(tmp_path / "copy"))
    assert labels(copy, [263])[263] == gs.Atlas(BUNDLED)[263].label
    assert labels(gs.load_sae(str(tmp_path / "copy"), site="14.res"), [263]) == {}
    assert labels(SAE, [0]) == {}


def test_texts_that_are_steered_say_what_each_feature_stands_for(atlas: gs.Atlas) -> None:
    along = gs.Steer.along("1.res", torch.ones(SAE.d_in), name="a vector")
    edits = [gs.Steer(SAE, 0, 2.0), along, gs.Clamp(SAE, 2, 1.0), gs.Project(SAE, 4), gs.Ablate(SAE, 1)]
    known = atlas.labels([0, 2, 4])
    assert len(known) == 3
    found = gs.steer(MODEL, PROMPT, edits, max_new_tokens=2, atlas=atlas)
    assert found.labels == (known[0], None, known[2], known[4], None)
    assert json.loads(json.dumps(found.to_dict()))["labels"] == list(found.labels)
    shown = " ".join(str(found).split())
    assert f"add feature 0 (2 raw) at 1.res · what it stands for: {readable(HOSTILE_LABEL)}" in shown
    assert f"clamp feature 2 to 1 raw at 1.res · what it stands for: {known[2]}" in shown
    assert "add a vector (1 raw) at 1.res edit: clamp" in shown
    html = found._repr_html_()
    assert "<script>" not in html
    assert escape(readable(HOSTILE_LABEL)) in html
    plain = gs.steer(MODEL, PROMPT, edits, max_new_tokens=2)
    assert not plain.named
    assert "stands for" not in str(plain)
    assert plain.pairs == found.pairs


def test_edits_of_several_saes_are_named_by_an_atlas_of_one_of_them(atlas: gs.Atlas) -> None:
    other = gs.SAE(SAE.d_in, 3, site="1.res", info=SAEInfo(name="other"))
    other.W_dec.copy_(SAE.W_dec[:3])
    both = [gs.Steer(other, 0, 1.0), gs.Steer(SAE, 0, 1.0)]
    assert gs.steer(MODEL, PROMPT, both, max_new_tokens=1, atlas=atlas).labels == (None, atlas[0].label)
    with pytest.raises(Mismatch, match="its labels are of other features"):
        gs.steer(MODEL, PROMPT, both[:1], max_new_tokens=1, atlas=atlas)


def test_a_dose_names_the_feature_and_what_stands_in_its_place(atlas: gs.Atlas) -> None:
    def of(feature: int) -> object:
        return lambda strength: [gs.Steer(SAE, feature, strength)]

    found = dose(
        MODEL, PROMPT, of(2), [0.0, 1.0], target=3, n=1, max_new_tokens=2, control=of(4), control_name="4", atlas=atlas
    )
    known = atlas.labels([2, 4])
    assert found.unedited.labels == ()
    assert [one.labels for one in found.responses] == [(known[2],)] * 2
    assert [one.labels for one in found.controls] == [(known[4],)] * 2
    assert found.to_dict()["controls"][1]["labels"] == (known[4],)
    shown = str(found)
    assert f"what it stands for: {known[2]}" in shown
    assert f"control: 4 · what it stands for: {known[4]}" in shown
    assert escape(known[2]) in found._repr_html_()


def test_a_probe_names_the_features_that_it_chooses(atlas: gs.Atlas) -> None:
    pytest.importorskip("sklearn")
    words = {"a": "the cat sat", "b": "a dog ran off", "c": "sun and moon"}
    texts = [
        (f"{text} {' '.join(text.split()[: n % 3])}".strip() + " x" * n, name)
        for n in range(8)
        for name, text in words.items()
    ]
    for classes in (2, 3):
        some = [one for one in texts if one[1] in list(words)[:classes]]
        found = gs.sparse_probe(MODEL, SAE, some, k=[1, 3], atlas=atlas)
        plain = gs.sparse_probe(MODEL, SAE, some, k=[1, 3])
        known = atlas.labels(found.features)
        assert found.named
        assert found.features == plain.features
        for row, bare in zip(found.rows, plain.rows, strict=True):
            assert row.accuracy == bare.accuracy
            for probe in row.probes:
                for one in probe.chosen:
                    assert one.label == (known.get(one.dimension) if row.basis == "features" else None)
        shown = [label for label in known.values() if readable(label) in str(found)]
        assert shown
        assert all(escape(readable(label)) in found._repr_html_() for label in shown)
        assert "stands for" not in str(plain)


def test_what_a_path_opened_is_closed_again(atlas: gs.Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Path] = []
    real = gs.Atlas.close
    monkeypatch.setattr(gs.Atlas, "close", lambda self: (closed.append(self.folder), real(self))[1])
    gs.look(MODEL, SAE, TEXT, atlas=atlas.folder)
    gs.attribute(MODEL, SAE, TEXT, k=1, atlas=atlas.folder)
    gs.steer(MODEL, PROMPT, [gs.Steer(SAE, 0, 1.0)], max_new_tokens=1, atlas=atlas.folder)
    assert closed == [atlas.folder] * 3
    gs.look(MODEL, SAE, TEXT, atlas=atlas)  # somebody else's stays open
    assert atlas[0].label


# --- the shell --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("at_hand")
def test_the_shell_steers_by_meaning_and_leads_to_the_feature(capsys: pytest.CaptureFixture[str]) -> None:
    label = gs.Atlas(BUNDLED)[2510].label
    assert label
    words = ["steer", "2510=2max", "I live in", "--max-new-tokens", "2", "-n", "1"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert f"what it stands for: {label[:40]}" in out
    assert out.endswith("Next: what is that feature?  gemscope feature 2510\n")
    assert main([*words, "--sweep", "0,1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["labels"] for one in found["responses"]] == [[label], [label]]


@pytest.mark.usefixtures("at_hand")
def test_an_imported_atlas_names_what_is_steered_and_maxima_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(BUNDLED, tmp_path / "in.atlas")
    change_json(tmp_path / "in.atlas", sae_digest="")
    words = ["steer", "2510=2raw", "I live in", "--max-new-tokens", "2", "-n", "1", "--tokens", "100"]
    assert main([*words, "--atlas", str(tmp_path / "in.atlas")]) == 0
    out = capsys.readouterr().out
    assert "what it stands for: " in out
    assert "588,653" not in out
    assert f"gemscope feature 2510 --atlas {tmp_path / 'in.atlas'}" in out
    change_json(tmp_path / "in.atlas", sae="another")
    assert main([*words, "--atlas", str(tmp_path / "in.atlas")]) == 1
    assert "its labels are of other features" in capsys.readouterr().err
