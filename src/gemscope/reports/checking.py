"""Is this the right model, site, scale and token mask for this SAE? With the evidence, and what fits better if not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from copy import copy

from gemscope.activations.model import LanguageModel
from gemscope.activations.site import KINDS, Site, locate
from gemscope.errors import InputError, SiteNotFound
from gemscope.features.fit import computed_by, require_fit
from gemscope.features.sae import SAE
from gemscope.progress import Progress, silent
from gemscope.reports.check import FEW_FOR_A_VERDICT, Check, Trial
from gemscope.reports.score import far
from gemscope.reports.trials import LEAST_EXPLAINED, Bench, best_of, is_plausible
from gemscope.text.corpus import Corpus
from gemscope.text.rows import Passed, passed_over
from gemscope.text.tokens import Tokens

CLEARLY_BETTER = 0.85
"""Another site must leave less than this share of the median error to be called the better one: between neighbouring
layers of a residual stream the figures lie closer than between any others. It must also be better on most tokens, by
more than chance (95 %)."""


def check(
    model: LanguageModel,
    sae: SAE,
    corpus: Corpus | None = None,
    *,
    site: Site | str | None = None,
    tokens: int = 512,
    every_token: bool = False,
    progress: Progress = silent,
) -> Check:
    """Runs the SAE on about `tokens` tokens where it says it reads (or at `site`) and where else it might belong.

    The other kinds of site in its layer (raw and post-norm MLP output, with and without the norm's gain) and the same
    kind in all layers are always tried; when one of them does better, every site of the same width (roughly at first);
    when none does and the figures are off, the usual input scales. Raises Mismatch where the widths rule it out from
    the start.
    """
    if site is not None:
        sae = _at(sae, Site.parse(site))
    declared = require_fit(model, sae)
    corpus = Corpus.sample() if corpus is None else corpus
    passed: Passed = Counter()
    rows = _read(model, corpus, tokens, every_token, passed)
    everywhere = _of_same_width(model, sae)
    with progress("check", None, "sites") as advance:
        bench = Bench(model, sae, rows, every_token, advance)
        given, best = _searched(bench, declared, everywhere)
        masked_l0, with_masked = bench.masked(declared)
    plausible = is_plausible(given, sae)
    ok = plausible and best is None
    return Check(
        ok=ok,
        model=model.name,
        sae=sae.info.name,
        site=str(declared),
        tokens=bench.count,
        explained_variance=given.explained_variance,
        error=given.error,
        l0=given.l0,
        declared_l0=sae.info.declared_l0,
        masked_tokens=int(rows.real.sum()) - bench.count,
        sinks=bench.sinks,
        masked_l0=masked_l0,
        explained_variance_with_masked=with_masked,
        suggestion=None if ok else _suggestion(given, best, sae, model),
        notes=tuple(_notes(model, sae, given if ok else None, bench.count, passed)),
        computed=computed_by(model, sae),
        trials=(given, *sorted(bench.trials[1:], key=lambda trial: trial.error)),
    )


def _searched(bench: Bench, declared: Site, everywhere: list[Site]) -> tuple[Trial, Trial | None]:
    """The trial of the given site, and the best of the others if it is clearly better."""
    bench.try_around(declared, everywhere)
    given = bench.trials[0]
    bench.try_sites(bench.promising(site for site in everywhere if site.kind == declared.kind))
    plausible = is_plausible(given, bench.sae)
    if plausible and bench.best() is given:
        return given, None
    # Something is better, if only a little: as the next layer is where the given one is several off. The verdict asks
    # for a clear difference, the search does not.
    bench.try_sites(bench.promising(everywhere))
    while (lead := bench.best()) is not None and bench.try_around(Site.parse(lead.site), everywhere):
        pass
    best = _better(given, bench.trials[1:], bench.sae)
    if best is None and not plausible:
        bench.try_scales(declared)
        best = _better(given, bench.trials[1:], bench.sae)
    return given, best


def _at(sae: SAE, site: Site) -> SAE:
    """The same weights, said to read at another site."""
    out = copy(sae)
    out.site = site
    if not sae.is_transcoder:
        out.site_out = site
    return out


def _read(model: LanguageModel, corpus: Corpus, tokens: int, every_token: bool, passed: Passed) -> Tokens:
    length = min(256, model.context)
    batch = max(1, math.ceil(tokens / length))
    first = next(model.rows(corpus.documents(passed), length=length, batch=batch, every_token=every_token), None)
    if first is None or not first.counted.any():
        raise InputError(f"{corpus.name} gave no token that counts: nothing to check with")
    return first.trimmed


def _of_same_width(model: LanguageModel, sae: SAE) -> list[Site]:
    """Every site of the model that the SAE could read, going by its width."""
    sites = [
        Site(None, "embed"),
        *(Site(layer, kind) for layer in range(model.n_layers) for kind in KINDS if kind != "embed"),
    ]
    out = []
    for site in sites:
        try:
            locate(model.hf, site)
        except SiteNotFound:
            continue
        if model.width(site) == sae.d_in:
            out.append(site)
    return out


def _better(given: Trial, others: Iterable[Trial], sae: SAE) -> Trial | None:
    """The best of the others, if it is clearly better than the given one."""
    best = best_of(others, sae)
    if best is None or not best.clearly or (is_plausible(given, sae) and best.error > CLEARLY_BETTER * given.error):
        return None
    return best


def _suggestion(given: Trial, best: Trial | None, sae: SAE, model: LanguageModel) -> str:
    if best is None and 1 - given.error >= LEAST_EXPLAINED:
        return (
            f"the reconstruction is plausible, but L0 is {given.l0:.0f} where {sae.info.declared_l0:g} is declared: "
            f"is the text very unlike its training text, or is this another SAE than its card says?"
        )
    if best is None:
        made = f"it was made for {sae.info.model}" if sae.info.model else "its file names no model"
        return (
            f"no site of {model.name} of this width fits, at any usual scale: "
            f"is it the model that it was trained on ({made})?"
        )
    figures = (
        f"median error {best.error:.3f} instead of {given.error:.3f}, smaller on {best.better_on:.0%} of the tokens, "
        f"L0 {best.l0:.0f} instead of {given.l0:.0f}"
    )
    if best.site != given.site:
        return f"it fits {best.site}, not {given.site}: {figures}; set sae.site, or pass --site {best.site}"
    return f"it fits {best.site} scaled by {best.scale:.4g}: {figures}; fold that factor into its weights"


def _notes(model: LanguageModel, sae: SAE, given: Trial | None, count: int, passed: Mapping[str, int]) -> Iterable[str]:
    made = sae.info.model
    if made is not None and made.split("/")[-1].lower() != model.name.rstrip("/").split("/")[-1].lower():
        yield f"it was made for {made}, this is {model.name}"
    if sae.info.prepend_bos and model.bos is None:
        yield "it was trained on text that begins with BOS, this tokenizer adds none"
    if given is not None and (told := far(given.l0, sae.info.declared_l0, count)):
        yield told
    if count < FEW_FOR_A_VERDICT:
        yield f"{count} tokens are few: figures can be off by several percent; 500 are a good check"
    if told := passed_over(passed):
        yield told
