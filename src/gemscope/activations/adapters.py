"""PEFT's adapters: what lies in a model that it has wrapped, and what a folder with an adapter says. PEFT itself is
imported only where an adapter is put on a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from gemscope.checked import read_json, shown
from gemscope.errors import CorruptFile, InputError, MissingDependency, ModelNotFound, UnsafeFile


def unwrapped(hf: nn.Module) -> nn.Module:
    """The model of transformers' that a wrapper of PEFT's holds, its adapters as active as they are; any other model as
    it is. Raises InputError for adapters that are no part of it.
    """
    if not _wraps(hf):
        return hf
    for config in hf.peft_config.values():  # type: ignore[operator]
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        outside = any(getattr(config, mark, None) for mark in ("is_prompt_learning", "is_adaption_prompt"))
        if outside or kind == "XLORA" or getattr(config, "alora_invocation_tokens", None):
            raise InputError(
                f"an adapter of type {kind} works outside of the modules that it adapts, where no site sees it: give "
                "the model without it, or merged with it"
            )
    return hf.get_submodule("base_model.model")


def active(hf: nn.Module) -> tuple[str, ...]:
    """The names of the adapters that are active on a model, in PEFT's wrapper or added by transformers itself."""
    if _wraps(hf):
        return tuple(hf.active_adapters)  # type: ignore[arg-type]
    return tuple(hf.active_adapters()) if getattr(hf, "_hf_peft_config_loaded", False) else ()  # type: ignore[operator]


def _wraps(hf: nn.Module) -> bool:
    """Whether it is PEFT's wrapper. transformers' own way of adding adapters wraps nothing."""
    return isinstance(getattr(hf, "peft_config", None), dict) and "base_model" in hf._modules


@dataclass(frozen=True)
class Adapter:
    """A folder with an adapter, and the model that it is for."""

    folder: Path
    base: str
    revision: str | None

    @property
    def has_tokenizer(self) -> bool:
        """Whether it brings one of its own."""
        return (self.folder / "tokenizer_config.json").is_file()

    def put_on(self, hf: nn.Module) -> nn.Module:
        """The model in PEFT's wrapper, the adapter active. Raises what PEFT does."""
        from peft import PeftModel

        found: nn.Module = PeftModel.from_pretrained(hf, str(self.folder), is_trainable=False)
        return found


@dataclass(frozen=True, kw_only=True)
class _Config:
    """What is read here of adapter_config.json; the rest is PEFT's."""

    base_model_name_or_path: str | None = None
    revision: str | None = None


def adapter_at(path: Path) -> Adapter | None:
    """The adapter in a folder; None where there is none. Raises CorruptFile, UnsafeFile, MissingDependency,
    ModelNotFound for one without a base model, InputError for one on another.
    """
    folder = path.expanduser()
    file = folder / "adapter_config.json"
    if not file.is_file() or (folder / "config.json").exists():
        return None
    config = read_json(file, _Config)
    base = config.base_model_name_or_path
    if not base:
        raise ModelNotFound(
            f"{shown(folder)} holds an adapter that names no base model: put it on one with peft, and give that to "
            "LanguageModel(model, tokenizer, name='...')"
        )
    if (Path(base) / "adapter_config.json").is_file() and not (Path(base) / "config.json").exists():
        raise InputError(f"{shown(folder)} holds an adapter on an adapter, {shown(base)}: merge that one first")
    if not (folder / "adapter_model.safetensors").is_file():
        if (folder / "adapter_model.bin").exists():
            raise UnsafeFile(f"the weights in {shown(folder)} are pickled, which can run anything: save as safetensors")
        raise CorruptFile(f"{shown(folder)} has no adapter_model.safetensors beside its adapter_config.json")
    if find_spec("peft") is None:
        raise MissingDependency(
            f"{shown(folder)} holds an adapter on {shown(base)}: pip install peft, or merge it into its model "
            "(merge_and_unload) and save that"
        )
    return Adapter(folder, base, config.revision)
