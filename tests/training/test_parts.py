"""An SAE in the parts that its ranks have written is written as one: to the bytes of an ordinary export, in little memory."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import gemscope as gs
from gemscope.features.crosscoder import Crosscoder
from gemscope.features.files.crosscoder import save_crosscoder
from gemscope.features.files.tensors import read_safetensors, stream_of, write_safetensors
from gemscope.features.sae import OF_FEATURES, SAE, SAEInfo
from gemscope.features.sliced import Sliced
from gemscope.training import deal as dealing
from gemscope.training.deal import Dealt
from gemscope.training.outcome import InParts
from processes import python

D = 6


def dealt(tensors: dict[str, Tensor], n: int, folder: Path) -> dict[str, Sliced]:
    """Tensors in the files of n ranks, as each writes its own."""
    parts = []
    for rank in range(n):
        own = {}
        for name, tensor in tensors.items():
            axis = OF_FEATURES.get(name)
            own[name] = tensor if axis is None else tensor.movedim(axis, 0)[rank::n].movedim(0, axis).contiguous()
        write_safetensors(folder / f"{rank}.safetensors", {name: stream_of(one) for name, one in own.items()})
        parts.append(read_safetensors(folder / f"{rank}.safetensors"))
    return {
        name: Dealt([part[name] for part in parts], OF_FEATURES[name]) if name in OF_FEATURES else Sliced.of(tensor)
        for name, tensor in parts[0].items()
    }


def made(kind: type[SAE], gate: str, width: int, device: str, model: str | None) -> Any:
    site = "embed" if model else "3.res"
    info = SAEInfo(name="planted", model=model, metadata={"steps": 7})
    k = 3 if gate == "topk" else None
    return kind(D, width, gate=gate, k=k, skip=gate == "relu", site=site, info=info, device=device)  # type: ignore[arg-type]


@settings(max_examples=25, deadline=None)
@given(
    gate=st.sampled_from(["jumprelu", "relu", "topk"]),
    width=st.integers(4, 60),
    n=st.integers(2, 4),
    piece=st.integers(1, 200),
    seed=st.integers(0, 10**6),
    model=st.sampled_from([None, "google/gemma-2-2b"]),
)
def test_parts_are_written_to_the_bytes_of_the_whole(
    gate: str,
    width: int,
    n: int,
    piece: int,
    seed: int,
    model: str | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Also of an SAE at the embedding, whose weights SAELens has in other units than the site's."""
    folder, dice = tmp_path_factory.mktemp("parts"), torch.Generator().manual_seed(seed)
    whole = made(SAE, gate, width, "cpu", model)
    for weight in whole.parameters():
        weight.copy_(torch.randn(weight.shape, generator=dice))
    tensors = {name: tensor.whole() for name, tensor in whole.tensors.items()}
    parts = made(InParts, gate, width, "meta", model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dealing, "PIECE", piece)
        parts.parts_of = dealt(tensors, n, folder)
        places = [gs.save_sae(sae, folder / name) for name, sae in (("one", whole), ("other", parts))]
        assert parts.digest == whole.digest
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert (places[0] / name).read_bytes() == (places[1] / name).read_bytes()
    assert model or gs.load_sae(places[1]).digest == whole.digest


def test_a_crosscoder_in_parts_is_written_to_the_bytes_of_the_whole(tmp_path: Path) -> None:
    whole = SAE(D, 11)
    for weight in whole.parameters():
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
    parts = InParts(D, 11, device="meta")
    parts.parts_of = dealt({name: tensor.whole() for name, tensor in whole.tensors.items()}, 3, tmp_path)
    sites = tuple(map(gs.Site.parse, ("1.res", "2.res")))
    places = [
        save_crosscoder(Crosscoder(sae, sites, (2, 4), (1.0, 2.0)), tmp_path / name)
        for name, sae in (("one", whole), ("other", parts))
    ]
    files = [{path.name: path.read_bytes() for path in place.iterdir()} for place in places]
    assert files[0] == files[1]


_WIDE, _D, _PIECE = 3 << 14, 256, 1 << 18


def write_wide(folder: str) -> None:
    """Says by how many bytes the memory in use rose at most, and how many were written."""
    import resource

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

    dealing.PIECE = _PIECE
    files = [read_safetensors(Path(folder, f"{rank}.safetensors")) for rank in range(3)]
    sae = InParts(_D, _WIDE, gate="relu", site="3.res", device="meta")
    sae.parts_of = {
        name: Dealt([part[name] for part in files], OF_FEATURES[name]) if name in OF_FEATURES else Sliced.of(one)
        for name, one in files[0].items()
    }
    gs.save_sae(SAE(4, 8, site="3.res"), Path(folder, "before"))  # what is imported for it
    before = peak()
    place = gs.save_sae(sae, Path(folder, "sae"))
    written = (place / "sae_weights.safetensors").stat().st_size
    sys.stdout.write(json.dumps({"rose": peak() - before, "written": written}) + "\n")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets go of what has been read of a file")
def test_memory_holds_some_pieces_of_what_is_written_and_no_more(tmp_path: Path) -> None:
    shapes = {"W_enc": (_D, _WIDE // 3), "b_enc": (_WIDE // 3,), "W_dec": (_WIDE // 3, _D), "b_dec": (_D,)}
    for rank in range(3):
        zeros = {name: torch.full(shape, float(rank)) for name, shape in shapes.items()}
        write_safetensors(tmp_path / f"{rank}.safetensors", {name: stream_of(tensor) for name, tensor in zeros.items()})
    root = Path(__file__).parent.parent
    code = f"import sys; sys.path[:0] = {[str(root), str(root.parent)]}; from training import test_parts as t; "
    done = python("-c", code + f"t.write_wide({str(tmp_path)!r})", env={**os.environ, "OMP_NUM_THREADS": "1"}).json()
    assert done["written"] > 8 * _WIDE * _D
    assert done["rose"] < 32e6 < done["written"] / 3  # about 15 MB, at whatever width
    found = read_safetensors(tmp_path / "sae" / "sae_weights.safetensors")
    assert (found["W_enc"][7, :6].tolist(), found["W_dec"][-3:, 5].tolist()) == ([0, 1, 2, 0, 1, 2], [0, 1, 2])
