"""SAEs of SAELens's that are in memory. SAELens is too heavy for these tests: a stand-in gives what its own classes give
(configuration, weights, what is done to them on saving); `peer/inside/test_live_saelens.py` has the real ones.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import gemscope as gs
from by_hand import random_sae
from gemscope.errors import FileError, InputError, MissingDependency
from gemscope.testing import tiny_model


def live(folder: Path, **changes: Any) -> Any:
    """What SAELens gives for a folder of version 6."""
    config = json.loads((folder / "cfg.json").read_text()) | changes
    weights = load_file(folder / "sae_weights.safetensors")
    config["metadata"]["model_from_pretrained_kwargs"] = {"dtype": torch.float32}  # which JSON has no word for
    kind = type("JumpReLUSAE", (), {"__module__": "sae_lens.saes.jumprelu_sae"})
    made = kind()
    made.cfg = SimpleNamespace(to_dict=lambda: config, metadata=SimpleNamespace(**config["metadata"]))
    made.W_enc = weights["W_enc"]
    made.state_dict = lambda: (
        {name: weight for name, weight in weights.items() if name != "threshold"}
        | {"log_threshold": weights["threshold"].log()}
    )
    made.process_state_dict_for_saving = lambda state: state.update(threshold=state.pop("log_threshold").exp())
    return made


def test_a_live_sae_is_the_one_that_its_folder_gives_whatever_becomes_of_it(tmp_path: Path) -> None:
    sae = random_sae(tiny_model("llama"))
    folder = gs.save_sae(sae, tmp_path)
    theirs = live(folder)
    found = gs.from_saelens(theirs)
    x = torch.randn(20, sae.d_in, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.encode(x).to_dense(), sae.encode(x).to_dense(), rtol=1e-5, atol=1e-6)
    assert (found.site, found.gate) == (sae.site, sae.gate)
    assert torch.equal(found.W_dec, sae.W_dec)
    theirs.W_enc.zero_()
    assert torch.equal(found.W_enc, sae.W_enc)
    gs.save_sae(found, tmp_path / "again")


def test_what_cannot_be_read_of_a_folder_cannot_be_of_a_live_one(tmp_path: Path) -> None:
    folder = gs.save_sae(random_sae(tiny_model("llama")), tmp_path)
    for changes, says in (
        ({"architecture": "temporal"}, "^the JumpReLUSAE at blocks.1.hook_resid_post is of the architecture"),
        ({"normalize_activations": "expected_average_only_in"}, "no usable factor"),
    ):
        with pytest.raises(FileError, match=says):
            gs.from_saelens(live(folder, **changes))


@pytest.mark.parametrize("given", [None, 3, "smollm2", gs.SAE(2, 4, site="1.res")])
def test_what_is_none_of_saelens_s_is_refused(given: object) -> None:
    with pytest.raises(InputError, match="expected an SAE of SAELens's own classes"):
        gs.from_saelens(given)


def test_where_saelens_is_not_installed_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(MissingDependency, match="SAELens is not installed: pip install sae-lens"):
        random_sae(tiny_model("llama")).to_saelens()
