"""GGUF files, llama.cpp's: which one a folder holds, and what has to be said for transformers to read it as plain
weights. Loading is `load.py`'s work; the bundled model's file, which transformers is not asked to read, `bundled.py`'s.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gemscope.checked import shown
from gemscope.errors import InputError, MissingDependency

_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf")


def gguf_of(folder: Path) -> Path | None:
    """The GGUF file of a folder that holds no model of transformers'. Raises InputError where it holds several."""
    files = sorted(file for file in folder.glob("*.gguf") if file.is_file())
    if not files or (folder / "config.json").exists():
        return None
    if len(files) > 1:
        names = ", ".join(shown(file.name, 60) for file in files[:5]) + (" ..." if len(files) > 5 else "")
        raise InputError(f"{shown(folder)} has {len(files)} GGUF files ({names}): give the path of one of them")
    return files[0]


def gguf_at(source: str) -> Path | None:
    """The GGUF file at a path; None where it is something else."""
    path = Path(source)
    return path if path.suffix == ".gguf" and path.is_file() else None


def unpacked(transformers: Any, gguf: Path) -> dict[str, Any]:
    """Options for transformers to read a file as plain weights. Raises MissingDependency, InputError."""
    if missing := [package for package in ("gguf", "accelerate") if find_spec(package) is None]:
        needed = " and ".join(missing)
        raise MissingDependency(f'GGUF files need {needed} to be read: pip install "gemscope[bundled,devices]"')
    if _PART.search(gguf.name):
        raise InputError(f"{shown(gguf)} is one part of several: join them with llama-gguf-split --merge")
    options: dict[str, Any] = {"gguf_file": gguf.name}
    if hasattr(transformers, "GgufConfig"):  # transformers 5 would leave them packed, and fetch programs that read them
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return options


def with_bos_as_said(tokenizer: Any, gguf: Path) -> Any:
    """The tokenizer with BOS in front of a text where the file says so, and only there: transformers 4 always puts one
    in front for a llama.
    """
    from gguf import GGUFReader
    from tokenizers import processors

    field = GGUFReader(gguf).get_field("tokenizer.ggml.add_bos_token")
    bos, id_ = tokenizer.bos_token, tokenizer.bos_token_id
    if field is None or bos is None or bool(field.contents()) == (tokenizer("a")["input_ids"][0] == id_):
        return tokenizer
    single, special = (f"{bos} $A", [(bos, id_)]) if field.contents() else ("$A", [])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return tokenizer
