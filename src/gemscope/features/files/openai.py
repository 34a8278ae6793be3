"""OpenAI's sparse_autoencoder of GPT-2 small, versions 1 to 5: a pickle, N.pt, whose folder says where layer N is read,
as resid_post_mlp_v5_32k does. Versions 1 to 4 are ReLU on plain activations, 5 topk behind a LayerNorm without gain.
"""

from __future__ import annotations

import re

from gemscope.activations.site import Site
from gemscope.checked import quoted
from gemscope.errors import FileError
from gemscope.features.files.contents import Contents
from gemscope.features.files.fold import fold_input_bias, mean_free
from gemscope.features.files.format import Format, Found
from gemscope.features.files.taken import Table, taken, whole

_PLACES = {"resid_post_mlp": "res", "resid_post_attn": "mid", "resid_delta_mlp": "mlp", "resid_delta_attn": "att_out"}
_PLACE = r"(resid_(?:post|delta)_(?:mlp|attn)|mlp_post_act)(?:_v\d\w*)?"
_LAYER = r"(\d{1,9})\.pt"
_TABLE: Table = {
    "W_enc": ("encoder.weight", "F D"),
    "b_enc": ("latent_bias", "F"),
    "W_dec": ("decoder.weight", "O F"),
    "b_dec": ("pre_bias", "O"),
}
_BESIDE = (
    "stats_last_nonzero", "latents_activation_frequency", "latents_mean_square", "activation", "activation_state_dict",
)  # fmt: skip


def read(found: Found) -> Contents:
    """One of them. Raises FileError for an activation that is not read, or a place that is no site; CorruptFile."""
    source, stored = found.source, found.stored
    activation = stored.get("activation", "ReLU")
    if activation not in ("ReLU", "TopK"):
        raise FileError(f"{source} has the activation {quoted(activation)}: ReLU and TopK are read")
    tensors = taken(stored, _TABLE, source=source, ignored=_BESIDE)
    fold_input_bias(tensors)
    k = None
    if activation == "TopK":
        state = stored.get("activation_state_dict")
        if not isinstance(state, dict) or state.get("postact_fn") != "ReLU":
            raise FileError(f"{source} has no ReLU behind its TopK, and features that may be negative: not read")
        k = whole(state.get("k"), "k", source)
        tensors["W_enc"] = mean_free(tensors["W_enc"])
    return Contents(
        source=source,
        tensors=tensors,
        gate="relu" if k is None else "topk",
        k=k,
        # As its own reader has it: what is TopK is behind a LayerNorm.
        norm=None if k is None else "deviation",
        centred=k is not None,
        site=found.site or _site(found),
        info=found.info("openai-community/gpt2"),
    )


def _site(found: Found) -> Site:
    place, layer = found.hit(_PLACE), re.fullmatch(_LAYER, found.file.name)
    if place is None or layer is None:
        return found.required_site()
    if place[1] not in _PLACES:
        raise FileError(f"{found.source} reads the neurons of an MLP ({place[1]}), which are no site here")
    return Site(int(layer[1]), _PLACES[place[1]])


FORMAT = Format(
    name="OpenAI",
    weights=_LAYER,
    called="N.pt",
    is_its=lambda found: found.has("encoder.weight", "latent_bias", "pre_bias"),
    read=read,
)
