"""What a large scope takes, on paper (docs/scale.md): the formulas against counts by hand and what others publish."""

import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scale() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tools" / "scale.py"))


def test_the_page_holds_the_tables_that_the_formulas_make(
    scale: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert scale["page"](text) == text
    assert all(made() in text for made in scale["TABLES"].values())


def test_gemma_scopes_report_says_the_same_of_itself(scale: dict[str, Any]) -> None:
    step = 4096 * scale["dense_flops"](3584, 131_072)
    assert step / 0.045 / (8 * 123e12) == pytest.approx(0.508, abs=0.02)  # of eight TPUv3, 45 ms a batch
    assert 4096 * 3584 * 4 / 0.045 / 2**30 > 1  # "more than one GiB/s"
    assert (scale["stored"](3584, 8e9, 4) - 12 * 8e9) / 2**40 == pytest.approx(100, rel=0.05)
    assert scale["all_sites"]() / 2**50 == pytest.approx(17, rel=0.1)


def test_bytes_are_those_that_two_ranks_were_measured_to_send(scale: dict[str, Any]) -> None:
    """D 256, F 4,096, B 1,024: 8.46 MB of gradients, or 1.05 MB of reconstructions, for each rank and step."""
    d_model, d_sae, batch = 256, 4096, 1024
    gradients = 4 * (2 * d_model * d_sae + 2 * d_sae + d_model)
    assert gradients / 1e6 == pytest.approx(8.46, abs=0.04)
    assert scale["data_parallel"](d_model, d_sae, 2) == pytest.approx(gradients, rel=0.01)
    assert scale["feature_parallel"](d_model, batch, 2) * 2 * 4 / 10 / 1e6 == pytest.approx(
        1.05, abs=0.01
    )  # float32 alone


def test_a_run_holds_what_its_tensors_weigh(scale: dict[str, Any]) -> None:
    import torch

    weights = [torch.empty(64, 512), torch.empty(512, 64)]
    assert scale["held"](64, 512) == 4 * sum(one.nbytes for one in weights)  # gradient and two moments beside each


def test_a_stores_rows_weigh_what_is_said(scale: dict[str, Any], tmp_path: Path) -> None:
    import gemscope as gs
    from gemscope.testing import tiny_model

    model = tiny_model()
    corpus = gs.Corpus.of(["a quick brown fox jumps over the lazy dog " * 20] * 20)
    store = gs.harvest(model, corpus, ["0.res"], to=tmp_path / "store", length=64)
    written = sum(path.stat().st_size for path in (tmp_path / "store").rglob("*.safetensors"))
    assert written == pytest.approx(scale["stored"](model.d_model, len(store["0.res"])), rel=0.1)
