"""The direct path from a site to the logits: what the model makes of a direction written there when no later attention
or MLP answers to it, up to the scales of its norms. Which modules lie on the path, `site.py` knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from gemscope.activations import site as places
from gemscope.activations.bare import bare
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.errors import SiteNotFound
from gemscope.shapes import Float


class DirectPath:
    """The linear maps between a site and the logits, each norm counting as its gain alone.

    With W_U the unembedding, a direction d at the site adds `unembedding @ carried(d)` to the logits, in units of the
    final norm's scale (the RMS of the stream that it reads, for LayerNorm its standard deviation).
    """

    def __init__(self, model: LanguageModel, site: Site) -> None:
        """Raises SiteNotFound for a site that the model does not have, or that has no such path (see `obstacle`)."""
        through = places.onward(model.hf, site)
        if through is None:
            raise SiteNotFound(f"no direct path to the logits: {obstacle(site)}")
        self.site = site
        self._model = model.hf
        self._modules = [bare(model.hf.get_submodule(path)) for path in (*through, places.final_norm(model.hf))]
        self._family = places.family_of(model.hf)

    def unembedding(self) -> AbstractContextManager[Float[Tensor, "V D"]]:
        """The matrix at the end of the path: see `unembedding`."""
        return unembedding(self._model)

    @torch.no_grad()
    def carried(self, directions: Float[Tensor, "F O"]) -> Float[Tensor, "F D"]:
        """Directions written at the site as they meet the rows of the unembedding; float32."""
        directions = directions.float() * math.prod(self._scales.values())
        for module in self._modules:
            with _at_hand(module):
                directions = self._gain(module, directions) if _is_norm(module) else _projected(module, directions)
        return directions

    def _gain(self, norm: nn.Module, directions: Tensor) -> Tensor:
        if isinstance(norm, nn.LayerNorm):  # it takes the mean out of what it reads, so out of each part of that
            directions = directions - directions.mean(-1, keepdim=True)
        if norm.weight is None:  # OPT can leave it out
            return directions
        weight: Tensor = norm.weight.detach().to(directions)  # type: ignore[operator]
        return directions * (1 + weight if self._family.one_plus else weight)

    @property
    def _scales(self) -> dict[str, float]:
        """What the model multiplies by on the way, in words, and by how much."""
        found: dict[str, float] = {}
        if self.site.layer is None and (scale := places.embed_scale(self._model)) != 1:
            # The model rounds the number to its own dtype before it multiplies.
            weight: Tensor = self._model.get_input_embeddings().weight  # type: ignore[operator]
            known = "the root of d_model" if scale == places.width(self._model, self.site) ** 0.5 else f"{scale:g}"
            found[f"times {known}, as the model scales embeddings"] = torch.tensor(scale, dtype=weight.dtype).item()
        if self.site.kind == "att" and (scale := places.residual_scale(self._model)) != 1:
            found[f"times {scale:g}, as the model scales what is added to the stream"] = scale
        if (divisor := places.logit_divisor(self._model)) != 1:
            found[f"divided by {divisor:g}, as the model divides its logits"] = 1 / divisor
        return found

    @property
    def words(self) -> str:
        """The path in words, from the site on."""
        said = list(self._scales)
        for module in self._modules[:-1]:
            if _is_norm(module):
                said.append("times the gain of the norm after it, without a division by that norm's scale")
            else:
                said.append("through the attention's output projection")
        final = self._modules[-1]
        said.append("centred as LayerNorm does" if isinstance(final, nn.LayerNorm) else "")
        gain = "times the final norm's gain (1 + weight)" if self._family.one_plus else "times the final norm's gain"
        said += [gain, "through the unembedding", "without a division by the final norm's scale"]
        return ", ".join(filter(None, said))

    @property
    def softcap(self) -> float | None:
        """The bound that the model bends its logits to stay below, which is no part of the path; None without one."""
        return getattr(places.text_config(self._model), "final_logit_softcapping", None)


@contextmanager
def unembedding(model: nn.Module) -> Iterator[Float[Tensor, "V D"]]:
    """Within the block, the matrix as a transformers model stores it: in its dtype, rows that no token has included."""
    head = bare(model.get_output_embeddings())  # type: ignore[operator]
    with _at_hand(head):
        yield _matrix(head) if hasattr(head, "base_layer") else head.weight.detach()  # type: ignore[operator]


def obstacle(site: Site) -> str | None:
    """Why nothing written at `site` reaches the logits directly, in one line; None where something does."""
    if site.kind in ("transcoder", "transcoder_nogain"):
        return f"{site} is what the MLP reads, and only the MLP's answer gets into the residual stream"
    return None


def _is_norm(module: nn.Module) -> bool:
    weight: Tensor | None = module.weight  # type: ignore[assignment]
    return weight is None or weight.ndim == 1


@torch.no_grad()
def _matrix(module: nn.Module) -> Tensor:
    """[out, in] of a linear module with an adapter, which no weight of it has: what it makes of each axis."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    axes = torch.eye(int(module.in_features), dtype=weight.dtype, device=weight.device)  # type: ignore[arg-type]
    matrix: Tensor = (module(axes) - module(torch.zeros_like(axes[:1]))).T
    return matrix


def _projected(module: nn.Module, directions: Tensor) -> Tensor:
    if hasattr(module, "base_layer"):
        return directions @ _matrix(module).to(directions).T
    weight: Tensor = module.weight.detach().to(directions)  # type: ignore[operator]
    # GPT-2's Conv1D stores its weight as [in, out].
    return directions @ (weight if type(module).__name__ == "Conv1D" else weight.T)


@contextmanager
def _at_hand(module: nn.Module) -> Iterator[None]:
    """With the weights there that accelerate may keep elsewhere until the module runs."""
    if not hasattr(module, "_hf_hook"):
        yield
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield
