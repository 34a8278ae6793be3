"""What docs/cluster.md is tried on: MODEL, SAE and texts/ in a folder."""

from __future__ import annotations

import json
from pathlib import Path

from gemscope.features.files.saving import save_sae
from gemscope.testing import planted_sae, tiny_model

SMALL = ["--piece", "200", "--offline"]
ROWS = ["--length", "24", "--batch", "4", *SMALL]
"""Options by which little text makes many pieces."""


def laid_out(folder: Path, *, documents: int) -> Path:
    """The folder, with so many short documents."""
    model = tiny_model("llama")
    model.hf.save_pretrained(folder / "MODEL")
    model.tokenizer.save_pretrained(folder / "MODEL")
    config = json.loads((folder / "MODEL" / "config.json").read_text())
    (folder / "MODEL" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    save_sae(planted_sae(site="1.res", seed=3).sae, folder / "SAE")
    (folder / "texts").mkdir()
    lines = [f"the {n} and the {n + 1} sang, thinking of rivers and hours " * (1 + n % 4) for n in range(documents)]
    (folder / "texts" / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return folder
