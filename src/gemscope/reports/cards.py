"""What cards say beside what a training run writes: the figures of a score, on its own text and on text unlike it; the
address that an SAE has in a release, a few facts where nobody wrote a card, and the first page of a repository that
holds several.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from gemscope.features.sae import SAE
from gemscope.features.scored import Figures
from gemscope.text.printable import clipped, readable

PLACE = "PATH/TO/THIS/FOLDER"
"""What a card says in the place of the SAE's address."""
REPORT = "../report.html"
"""The page of its training, from where the card lies."""
MARK = "<!-- written by gemscope push, which replaces it -->"
"""Ends the first page of a repository; one without it is somebody's own and stays."""


BEGIN, END = "<!-- figures of score.json, which gemscope replaces -->", "<!-- until here -->"
"""Around the figures: all else of a card is whoever's who wrote it."""
WAY = "gemscope score MODEL SAE CORPUS --unlike OTHER --keep"
"""What measures an SAE on unlike text."""


def measured(figures: Figures | None, *, way: str | None = None) -> str:
    """What an SAE is worth on text, unlike its own too; where that was not measured a line says so, and what measures
    it (`way`).
    """
    way = f"`{(way or WAY).replace('`', 'ˋ')}`"
    if figures is None:
        told = "Measured on its own sources alone. What it is worth on text unlike them, and what it costs the model"
        return f"{BEGIN}\n{told}: {way}.\n{END}"
    both = [figures] if figures.unlike is None else [figures, figures.unlike]
    rows = (
        ("read", [_code(one.corpus) for one in both]),
        ("tokens, of them for losses", [f"{one.tokens:,}, {one.loss_tokens:,}" for one in both]),
        ("L0", [f"{one.l0:.2f}" for one in both]),
        ("FVU", [_number(one.fvu, ".4f") for one in both]),
        ("dead: never fired on these tokens", [f"{one.dead:.2%}" for one in both]),
        ("delta loss, the SAE in place (nats)", [_number(one.delta_loss, "+.4f") for one in both]),
        ("KL, clean to spliced (nats)", [_number(one.kl, ".4f") for one in both]),
        ("loss recovered, of the mean's", [_number(one.loss_recovered_mean, ".2%") for one in both]),
    )
    heads = ["text", "unlike text"][: len(both)]
    table = "\n".join(f"| {name} | {' | '.join(cells)} |" for name, cells in rows if any(cells))
    told = f"\n\nOn text unlike that it was not measured; {way} does it." if len(both) == 1 else ""
    return f"""{BEGIN}
## On text

| | {" | ".join(heads)} |
| --- |{" --- |" * len(heads)}
{table}{told}
{END}"""


def with_figures(card: str, figures: Figures, *, way: str | None = None) -> str:
    """A card with the figures of a score in the place that it has for them; as it is where it has none."""
    before, begin, rest = card.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{measured(figures, way=way)}{after}" if begin and end else card


def addressed(card: str, address: str, report: str) -> str:
    """A card as it stands where the SAE has this address, and the page of its training that path."""
    return card.replace(f'"{PLACE}"', json.dumps(address)).replace(f"({REPORT})", f"({report})")


def plain(sae: SAE, figures: Figures | None) -> str:
    """The card of an SAE that came without one: what it is, how to use it, the figures of a score if there is one."""
    site = str(sae.site) if sae.site == sae.site_out else f"{sae.site} → {sae.site_out}"
    kind = "sparse autoencoder" if sae.site == sae.site_out else "transcoder"
    sparse = "" if sae.info.declared_l0 is None else f" Its file says that {sae.info.declared_l0:g} fire per token."
    return f"""{_head(sae.info.model)}# {sae.d_sae:,} features at {_code(site)}

A {sae.gate} {kind} of {_code(sae.info.model or "an unnamed model")} with {sae.d_sae:,} features.{sparse}

{"" if figures is None else f"{measured(figures)}{chr(10)}{chr(10)}"}## Use

```python
import gemscope as gs

model = gs.load_model({json.dumps(sae.info.model or "MODEL")})
sae = gs.load_sae("{PLACE}")
print(gs.look(model, sae, "Some text."))
```
"""


def front(repo: str, model: str | None, places: Sequence[str]) -> str:
    """The first page of a repository with SAEs in several folders."""
    listed = "\n".join(f"- [{place}]({place}/README.md)" for place in places)
    return f"""{_head(model)}# {len(places):,} sparse autoencoders

{listed}

## Use

```python
import gemscope as gs

sae = gs.load_sae({json.dumps(f"{repo}/{places[0]}")})
```

```python
from sae_lens import SAE

sae = SAE.from_pretrained({json.dumps(repo)}, {json.dumps(places[0])})
```
"""


def _head(model: str | None) -> str:
    base = f"base_model: {json.dumps(model)}\n" if model else ""
    return f"---\nlibrary_name: gemscope\ntags: [sparse-autoencoder, saelens]\n{base}---\n"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _code(value: str) -> str:
    return f"`{readable(clipped(value)).replace('`', 'ˋ').replace('|', '¦')}`"
