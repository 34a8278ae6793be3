"""The module that does the work where another library has put one of its own in its place: what is computed by hand, a
norm without its gain or the way to the logits, hangs on what it is and on its weights.
"""

from __future__ import annotations

from torch import nn

from gemscope.activations.hooked import as_torch

WRAPPED = "_original_component"
"""The name under which each of TransformerLens's bridges keeps the module that it stands for."""
_COPIES = {"modules_to_save": "original_module", "ln_tuning_layers": "base_layer"}
"""Where PEFT keeps whole modules in the place of one, by adapter, and where that one."""


def bare(module: nn.Module) -> nn.Module:
    """The module itself where nothing stands before it. Of those that PEFT keeps, the one whose adapter is active. A
    linear module with an addition stays as it is: no one module does what the two do. TransformerLens's own as torch's.
    """
    while (behind := _behind(module)) is not None:
        module = behind
    return as_torch(module) or module


def _behind(module: nn.Module) -> nn.Module | None:
    held = module._modules
    if WRAPPED in held:
        return held[WRAPPED]
    kept = next((name for name in _COPIES if name in held and hasattr(module, "active_adapters")), None)
    if kept is None:
        return None
    copies = module.get_submodule(kept)
    off = module.disable_adapters or getattr(module, "merged_adapters", None)  # merging swaps the two
    active = () if off else [name for name in module.active_adapters if name in copies._modules]  # type: ignore[union-attr]
    return copies.get_submodule(active[0]) if active else module.get_submodule(_COPIES[kept])
