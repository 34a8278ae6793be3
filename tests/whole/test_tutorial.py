"""The tutorial runs as written, its page shows what the example holds, and Gemma 2 gives the numbers of the original."""

import runpy
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch

import gemscope as gs

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tutorial.py"
EXAMPLES = ("tutorial", "own_sae", "meaning")
GEMMA = ("google/gemma-2-2b", "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71")
PROMPT = "Would you be able to travel through time using a wormhole?"


@pytest.mark.usefixtures("at_hand", "little_text", "unchecked")
def test_the_tutorial_runs_on_the_bundled_model_and_sae(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLE), run_name="tutorial")
    out = capsys.readouterr().out
    assert "✓ fits" in out
    assert "it fits 15.res, not 13.res" in out
    assert out.rstrip().endswith("True")  # saved, loaded, and still the same SAE


@pytest.fixture
def docs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """tools/docs.py, from the repository's root, as for whoever runs it."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    monkeypatch.chdir(ROOT)
    return runpy.run_path(str(ROOT / "tools" / "docs.py"), run_name="docs")


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_notebook_holds_the_example_s_text_and_code_and_what_it_showed(docs: dict[str, Any], example: str) -> None:
    path = next(path for path in docs["EXAMPLES"] if path.stem == example)
    kept = nbformat.read(docs["EXAMPLES"][path], as_version=4)
    nbformat.validate(kept)
    made = docs["notebook"](path.read_text(encoding="utf-8"))
    told = f"{docs['EXAMPLES'][path]} is not what {path} says: run `make docs`"
    assert [(one.cell_type, one.id, one.source) for one in kept.cells] == [
        (one.cell_type, one.id, one.source) for one in made.cells
    ], told
    shown = [output for cell in kept.cells for output in cell.get("outputs", [])]
    assert shown
    assert not [output for output in shown if output.output_type == "error"]
    assert any("text/html" in output.get("data", {}) for output in shown)


@pytest.mark.notebook
@pytest.mark.parametrize("example", EXAMPLES)
def test_jupyter_runs_a_notebook_and_shows_what_it_showed(docs: dict[str, Any], example: str) -> None:
    path = next(path for path in docs["EXAMPLES"] if path.stem == example)
    kept = nbformat.read(docs["EXAMPLES"][path], as_version=4)
    ran = docs["executed"](path.read_text(encoding="utf-8"))
    for cell, earlier in zip(ran.cells, kept.cells, strict=True):
        kinds = [
            [
                (output.output_type, output.get("name"), sorted(output.get("data", {})))
                for output in one.get("outputs", [])
            ]
            for one in (cell, earlier)
        ]
        assert kinds[0] == kinds[1], cell.source


@pytest.mark.usefixtures("at_hand", "little_text", "unchecked")
def test_the_readme_s_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    # As written, but for the amount of text and of training: the test shows that it runs, not how long it takes.
    assert "rows=100_000" in code
    code = code.replace("rows=100_000", "rows=4_096")
    exec(compile(code, "README.md", "exec"), {})
    assert "google/gemma-scope-2b-pt-res/layer_20/width_16k" in capsys.readouterr().out
    assert gs.load_sae("my-sae").d_sae == 1024


@pytest.mark.hub
def test_gemma_2_gives_the_numbers_that_the_original_tutorial_prints() -> None:
    try:
        model = gs.load_model(GEMMA[0], dtype="float32")
        sae = gs.load_sae(GEMMA[1])
    except gs.errors.AccessError as error:
        pytest.skip(str(error))
    acts = model.capture(PROMPT, [sae.site])[sae.site]
    assert acts.tokens.ids[0].tolist() == [
        *(2, 18925, 692, 614, 3326, 577, 5056, 1593, 1069, 2177, 476, 47420, 18216, 235336),
    ]
    features = sae.encode(acts)
    x, out = acts.values.float(), sae.decode(features)
    explained = 1 - ((out[:, 1:] - x[:, 1:]) ** 2).mean() / x[:, 1:].var()
    assert explained.item() == pytest.approx(0.8887, abs=5e-4)
    dense = features.to_dense()
    above_one = (dense > 1).sum(-1)[0].tolist()
    assert above_one == pytest.approx([7017, 47, 65, 70, 55, 72, 65, 75, 80, 72, 68, 93, 86, 89], abs=2)
    assert dense.argmax(-1)[0].tolist() == [
        *(6631, 5482, 10376, 1670, 11023, 7562, 9407, 8399, 12935, 10004, 10004, 10004, 12935, 3442),
    ]
    look = gs.look(model, sae, PROMPT)
    assert not look.tokens[0].counted
    assert "neuronpedia.org/gemma-2-2b/20-gemmascope-res-16k/10004" in str(look.embed(10004))
    assert gs.check(model, sae).ok


def test_the_original_tutorial_s_class_and_ours_agree_on_its_own_dictionary() -> None:
    torch.manual_seed(0)
    d, f = 24, 96
    params = {
        "W_enc": torch.randn(d, f),
        "W_dec": torch.randn(f, d),
        "b_enc": torch.randn(f),
        "b_dec": torch.randn(d),
        "threshold": torch.rand(f) * 5,
    }
    sae = gs.SAE(d, f)
    assert str(sae.load_state_dict(params)) == "<All keys matched successfully>"
    x = torch.randn(2, 7, d)
    pre = x @ params["W_enc"] + params["b_enc"]
    acts = (pre > params["threshold"]) * torch.relu(pre)
    torch.testing.assert_close(sae.encode(x).to_dense(), acts)
    torch.testing.assert_close(sae(x), acts @ params["W_dec"] + params["b_dec"])
