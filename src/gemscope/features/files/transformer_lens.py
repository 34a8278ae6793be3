"""What TransformerLens had done to a model's weights before an SAE was trained on it, as an SAELens folder says or its
version implies, and the SAE's weights for the model as it is.

TransformerLens can rewrite a model into one that predicts the same: `center_writing_weights` takes from all that is
written to the residual stream its mean over the width, which LayerNorm does not see; `fold_value_biases` moves the
value biases of attention (and, with `fold_ln`, what the bias of the norm before them becomes) behind the output
projection. Sites then hold other numbers: x − mean(x), and z − c for the attention heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath

from torch import Tensor

from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.activations.transformer_lens import has_layer_norm, value_bias
from gemscope.errors import FileError, Mismatch
from gemscope.features.files.fold import mean_free, rounded, through
from gemscope.features.files.hook_names import is_of_layer_norm, may_have_value_biases

_WRITTEN = frozenset(("embed", "mid", "att_out", "mlp", "res"))
"""Kinds of site that hold the residual stream, or what is added to it."""
_NO_PROCESSING_SINCE = 4
"""SAELens trained on `HookedTransformer.from_pretrained(...)` up to version 3, on `from_pretrained_no_processing(...)`
from 4 on: what is not said is True before and False since (read in its versions 0.1, 2.1, 3.12, 4.0, 5.11 and 6.54)."""
_CENTRED = (
    # SAELens 6.54's own table says so of these, whose folders do not
    "jbloom/GPT2-Small-SAEs-Reformatted",
    "jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8",
    "tommmcgrath/gpt2-small-mlp-out-saes",
    # made with e2e_sae 2.1, which loads GPT-2 by HookedTransformer.from_pretrained(...)
    "neuronpedia/gpt2-small__res_sce-ajt",
    "neuronpedia/gpt2-small__res_scefr-ajt",
    "neuronpedia/gpt2-small__res_scl-ajt",
    "neuronpedia/gpt2-small__res_sle-ajt",
    "neuronpedia/gpt2-small__res_slefr-ajt",
    "neuronpedia/gpt2-small__res_sll-ajt",
)
"""Repositories whose SAEs read a centred residual stream, and do not say so."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """`model_from_pretrained_kwargs` of a folder, as far as it moves a site."""

    center_writing_weights: bool | None = None
    fold_ln: bool | None = None
    fold_value_biases: bool | None = None
    refactor_factored_attn_matrices: bool | None = None


@dataclass(frozen=True)
class Processing:
    """What had been done to the model."""

    centred: bool
    """`center_writing_weights`."""
    norm_folded: bool
    """`fold_ln`."""
    values_folded: bool
    """`fold_value_biases`."""
    rotated: bool
    """`refactor_factored_attn_matrices`: each head's values are in a basis of their own."""
    undone_before: bool
    """The SAE has been saved since with an encoder that is centred."""

    @classmethod
    def of(
        cls, said: Said, *, version: str | None, model_class: str | None, place: str, undone_before: bool
    ) -> Processing:
        """`version` is the SAELens that trained it; `place` the repository or the path that the folder was found at."""
        if model_class not in (None, "HookedTransformer"):
            return cls(centred=False, norm_folded=False, values_folded=False, rotated=False, undone_before=False)
        default = version is not None and _major(version) < _NO_PROCESSING_SINCE

        def done(value: bool | None, unsaid: bool) -> bool:
            return unsaid if value is None else value

        return cls(
            centred=done(said.center_writing_weights, default or _is_listed(place)),
            norm_folded=done(said.fold_ln, default),
            values_folded=done(said.fold_value_biases, default),
            rotated=done(said.refactor_factored_attn_matrices, False),
            undone_before=undone_before,
        )

    def undone(
        self,
        tensors: Mapping[str, Tensor],
        sites: tuple[Site, Site | None],
        *,
        name: str | None,
        model: LanguageModel | None,
        source: str,
    ) -> tuple[dict[str, Tensor], bool]:
        """Weights that do on the model as it is what these do on the processed one, and whether the SAE is centred.

        Raises FileError where that cannot be: heads in another basis, a transcoder whose output lacks a mean that is
        not in what it reads, or a model that has to be given.
        """
        read_at, write_at = sites
        written = write_at or read_at
        if self.centred and written != read_at and written.kind in _WRITTEN and _centres(name, model, source):
            raise FileError(
                f"{source} is a transcoder of {name or 'a model'} with center_writing_weights, whose output lacks a "
                "mean that is not in what it reads: such transcoders are not read here"
            )
        if self.centred and read_at.kind in _WRITTEN and _centres(name, model, source):
            W_enc = tensors["W_enc"]
            if self.undone_before:  # once is enough, and a second rounding would make it another SAE
                return dict(tensors), True
            return {**tensors, "W_enc": mean_free(W_enc)}, True
        if read_at.kind != "att" or read_at.layer is None:
            return dict(tensors), False
        if self.rotated:
            raise FileError(
                f"{source} reads attention heads after refactor_factored_attn_matrices, in a basis that no model has"
            )
        if not self.values_folded or not (model or may_have_value_biases(name)):
            return dict(tensors), False
        if model is None:
            raise FileError(
                f"{source} reads attention heads of {name or 'a model'} whose value biases TransformerLens had folded "
                "away: give the model that it is for, as in load_sae(..., model=model)"
            )
        c = value_bias(model.hf, read_at.layer, norm_folded=self.norm_folded).cpu()
        if len(c) != len(tensors["W_enc"]):
            raise Mismatch(f"{source} reads {len(tensors['W_enc'])} numbers per token, {model.name} has {len(c)} there")
        return _shifted(tensors, c), False


def _major(version: str) -> int:
    first = version.partition(".")[0]
    return int(first) if first.isdecimal() else 0


def _is_listed(place: str) -> bool:
    """By the repository's name in an address, in a path of the Hub's cache, or as a folder's own."""
    parts = set(PurePath(place).parts)
    return any(
        parts & {repository.partition("/")[2], f"models--{repository.replace('/', '--')}"} for repository in _CENTRED
    )


def _centres(name: str | None, model: LanguageModel | None, source: str) -> bool:
    """Whether TransformerLens centres such a model: it passes over those without LayerNorm."""
    if model is not None:
        return has_layer_norm(model.hf)
    known = is_of_layer_norm(name)
    if known is None:
        raise FileError(
            f"{source} was made for {name or 'an unnamed model'} with center_writing_weights, and whether that changed "
            "anything is not known here: give the model, as in load_sae(..., model=model)"
        )
    return known


def _shifted(tensors: Mapping[str, Tensor], c: Tensor) -> dict[str, Tensor]:
    """What reads and writes z − c, as what reads and writes z."""
    shift = through(c, tensors["W_enc"])
    return {
        **tensors,
        "b_enc": rounded(tensors["b_enc"].double() - shift, tensors["b_enc"]),
        "b_dec": rounded(tensors["b_dec"].double() + c.double(), tensors["b_dec"]),
    }
