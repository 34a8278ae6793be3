"""SAEs that other tools have written, with those tools' own answers (tests/answers/formats), and ways to lay them out."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from gemscope.features.sae import SAE

FORMATS = Path(__file__).parent / "answers" / "formats"


def answers(name: str, layer: int | None = None) -> dict[str, torch.Tensor]:
    """x, features and recon of a tool; of one layer where there are several."""
    found = load_file(FORMATS / name)
    return found if layer is None else {key: one[layer] for key, one in found.items()}


def copied(name: str, to: Path) -> Path:
    """A folder of them, at another place."""
    return Path(shutil.copytree(FORMATS / name, to))


def put(path: Path, value: object) -> Path:
    """JSON in a file whose folder may not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def changed(path: Path, *place: str, **values: object) -> Path:
    """A JSON file with some of its values others, at the top or in an object in it."""
    document = json.loads(path.read_text())
    inside = document
    for name in place:
        inside = inside[name]
    inside.update(values)
    path.write_text(json.dumps(document))
    return path


def assert_answers(sae: SAE, told: Mapping[str, torch.Tensor], units: torch.Tensor | None = None) -> None:
    """The same features are active, and they and what is written are equal to 1e-5. `units` are how many of ours one
    of theirs is.
    """
    x, features = told["x"], told["features"]
    sparse = sae.encode(x)
    found, dense = sparse.to_dense(), sae.encode_dense(x)
    expected = features if units is None else features * units
    for one in (found, dense.detach()):
        np.testing.assert_array_equal((one != 0).numpy(), (features != 0).numpy())
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-5)
    assert bool((features != 0).any())
    torch.testing.assert_close(sae.forward(x).detach(), told["recon"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.read(x)[1], told["recon"], rtol=1e-5, atol=1e-5)
