"""Whether a model and an SAE fit each other at all, and what of an activation an SAE answers for."""

from torch import Tensor

from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.errors import InputError, Mismatch
from gemscope.features.cross_layer import CrossLayerTranscoder
from gemscope.features.sae import SAE, SAEInfo
from gemscope.shapes import Float


def sites_of(sae: SAE) -> tuple[Site, Site]:
    """Where an SAE reads, and where it writes: the same place but for transcoders. Raises InputError for one that does
    not say.
    """
    if sae.site is None:
        raise InputError(
            f"{sae.info.name} does not say where it reads: set sae.site, as in sae.site = gs.Site.parse('20.res')"
        )
    return sae.site, sae.site_out or sae.site


def require_fit(model: LanguageModel, sae: SAE) -> Site:
    """The site that the SAE reads. Raises InputError where it names none, Mismatch where the widths differ."""
    reads, writes = sites_of(sae)
    _require_width(model, reads, sae.d_in, sae.info, "reads")
    _require_width(model, writes, sae.d_out, sae.info, "writes")
    return reads


def require_layers(model: LanguageModel, clt: CrossLayerTranscoder) -> None:
    """That a cross-layer transcoder fits at every layer. Raises Mismatch."""
    for site, site_out in zip(clt.sites, clt.sites_out, strict=True):
        _require_width(model, site, clt.d_in, clt.info, "reads")
        _require_width(model, site_out, clt.d_out, clt.info, "writes")


def _require_width(model: LanguageModel, site: Site, d: int, info: SAEInfo, does: str) -> None:
    width = model.width(site)
    if width != d:
        made = f" (it was made for {info.model})" if info.model else ""
        raise Mismatch(f"{info.name} {does} {d} numbers per token, {model.name} has {width} at {site}{made}")


def computed_by(model: LanguageModel, sae: SAE) -> str:
    """In which number format and where a model computes what an SAE reads, and where that is if elsewhere."""
    there = sae.place
    return model.computed if there == str(model.device) else f"{model.computed}, the SAE on {there}"


def answered_for(
    sae: SAE, target: Float[Tensor, "N O"], out: Float[Tensor, "N O"]
) -> tuple[Float[Tensor, "N O"], Float[Tensor, "N O"]]:
    """Activations and what an SAE makes of them, as figures compare them: without the mean that one which is centred
    leaves as it was, for the model's norms do not see it, and having explained it would be no merit.
    """
    if not sae.centred:
        return target, out
    mean = target.double().mean(-1, keepdim=True)
    return target - mean, out - mean
