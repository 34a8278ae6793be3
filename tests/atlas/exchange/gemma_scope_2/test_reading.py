"""Gemma Scope 2's own examples, in."""

import copy
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from foreign import ADDRESS, EACH, LENGTH, ROWS, F, examples_file
from gemscope.atlas.exchange.verbs import import_atlas
from gemscope.atlas.reader import Atlas
from gemscope.atlas.verify import verify
from gemscope.errors import CorruptFile, InputError


def test_gemma_scope_2_s_examples_become_an_atlas_without_a_model(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("gemscope.atlas.exchange.gemma_scope_2.reading._BLOCK", 64)
    monkeypatch.setattr("gemscope.atlas.exchange.gemma_scope_2.reading._ROWS", 16)
    given = examples_file()
    save_file(given, tmp_path / "examples.safetensors")
    with import_atlas("gemma-scope-2", tmp_path / "examples.safetensors", tmp_path / "a.atlas", sae=ADDRESS) as atlas:
        assert verify(atlas.folder) == []
        values, seqs, positions = (given[name].float().numpy() for name in ("activations", "seq_ids", "positions"))
        assert (len(atlas), atlas.manifest.rows, atlas.manifest.length) == (F, 60, LENGTH)
        assert (atlas.manifest.model, atlas.manifest.site) == ("google/gemma-3-1b-pt", "13.res")
        assert atlas.manifest.tokens == ROWS * LENGTH
        for index in (0, 7, 63, 64, 149):
            page = atlas[index]
            assert page.max == values[index].max()
            assert page.count == round(float(given["feature_frequencies"][index]) * ROWS * LENGTH)
            best = values[index].argmax()
            first = page.strongest[0]
            assert first.value == values[index, best]
            row = given["tokens"][int(seqs[index, best])].tolist()
            at = int(positions[index, best])
            assert first.ids == row[max(0, at - 40) : at + 24]
            assert first.tokens == [f"[{id_}]" for id_ in first.ids]
            assert len(page.strongest) == 20
            assert {one.value for one in page.examples} <= set(values[index].tolist())
            assert [one.value for one in page.strongest] == sorted((one.value for one in page.strongest), reverse=True)
            assert [one.value for one in page.promoted] == sorted((one.value for one in page.promoted), reverse=True)
            assert page.promoted[0].id == int(given["top_tokens"][index][given["top_logits"][index].argmax()])
            for one in page.examples:
                if one.interval is not None:
                    found = page.intervals[one.interval]
                    assert found.low <= one.value < found.high
            assert sum(one.count for one in page.intervals) == EACH
        assert atlas[5].dead
        assert len(atlas[6].examples) == 3
        seen = atlas[7].strongest[0]
        assert seen.values[seen.peak + 2] == pytest.approx(400, rel=1e-3)  # its neighbour is seen in its window alone
        assert sum(one.value >= 400 for one in atlas[7].examples) == 1
    with import_atlas(
        "gemma-scope-2", tmp_path / "examples.safetensors", tmp_path / "b.atlas", sae=ADDRESS, whole_corpus=True
    ) as whole:
        assert whole.manifest.rows == ROWS
        with Atlas(tmp_path / "a.atlas") as atlas:
            assert [one.ids for one in whole[9].examples] == [one.ids for one in atlas[9].examples]


def test_gemma_scope_2_s_tokens_are_read_by_a_model_s_tokenizer(tmp_path: Path) -> None:
    from gemscope.testing import tiny_model

    model = tiny_model("gemma2")
    given = examples_file()
    path = tmp_path / "examples.safetensors"
    save_file(given | {"tokens": given["tokens"] % len(model.tokenizer)}, path)
    with import_atlas("gemma-scope-2", path, tmp_path / "a.atlas", sae="my/sae", model=model) as atlas:
        one = atlas[0].strongest[0]
        assert "".join(one.tokens) == b"".join(model.token_bytes(one.ids)).decode(errors="replace")
        with import_atlas("gemma-scope-2", path, tmp_path / "b.atlas", sae="my/sae", model=model.tokenizer) as again:
            assert again[0].strongest[0].tokens == one.tokens


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.pop("seq_ids"), r"holds activations \[150, 60\], .* seq_ids is missing or of another shape"),
        (
            lambda file: file.update(positions=file["positions"][:, :5].contiguous()),
            "positions is missing or of another",
        ),
        (lambda file: file["seq_ids"].add_(1000), "feature 0 has an example outside the file's own corpus"),
        (lambda file: file["feature_frequencies"].neg_(), "no frequencies"),
        *(
            (lambda file, name=name: file.update({name: file[name].float()}), f"{name} holds no whole numbers")
            for name in ("top_tokens", "bottom_tokens", "seq_ids", "positions", "tokens")
        ),
    ],
)
def test_a_file_of_another_shape_is_told_what_it_holds(tmp_path: Path, change: Any, message: str) -> None:
    given = copy.deepcopy(examples_file())
    change(given)
    save_file(given, tmp_path / "examples.safetensors")
    with pytest.raises(CorruptFile, match=message):
        import_atlas("gemma-scope-2", tmp_path / "examples.safetensors", tmp_path / "a.atlas", sae=ADDRESS)
    assert {one.name for one in tmp_path.iterdir()} == {"examples.safetensors"}


def test_a_frequency_beyond_all_counting_is_refused(tmp_path: Path) -> None:
    given = copy.deepcopy(examples_file())
    given["feature_frequencies"].fill_(1e30)
    save_file(given, tmp_path / "examples.safetensors")
    with pytest.raises(InputError, match=r"feature 0 has count=\d+: from 0 to"):
        import_atlas("gemma-scope-2", tmp_path / "examples.safetensors", tmp_path / "a.atlas", sae=ADDRESS)
    assert not (tmp_path / "a.atlas").exists()


def test_a_truncated_file_of_examples_gets_one_line(tmp_path: Path) -> None:
    path = tmp_path / "examples.safetensors"
    save_file(examples_file(), path)
    path.write_bytes(path.read_bytes()[:10_000])
    with pytest.raises(CorruptFile, match="no whole safetensors file"):
        import_atlas("gemma-scope-2", path, tmp_path / "a.atlas", sae=ADDRESS)
