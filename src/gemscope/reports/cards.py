"""The cards of a release: what a training run wrote of its SAE, with the address that it has now, a few facts where
nobody wrote one, and the first page of a repository that holds several.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from gemscope.features.sae import SAE
from gemscope.reports.training import PLACE, REPORT
from gemscope.text.printable import clipped, readable

MARK = "<!-- written by gemscope push, which replaces it -->"
"""Ends the first page of a repository; one without it is somebody's own and stays."""


def addressed(card: str, address: str, report: str) -> str:
    """A card as it stands where the SAE has this address, and the page of its training that path."""
    return card.replace(f'"{PLACE}"', json.dumps(address)).replace(f"({REPORT})", f"({report})")


def plain(sae: SAE) -> str:
    """The card of an SAE that came without one: what it is and how to use it, and no figures."""
    site = str(sae.site) if sae.site == sae.site_out else f"{sae.site} → {sae.site_out}"
    kind = "sparse autoencoder" if sae.site == sae.site_out else "transcoder"
    sparse = "" if sae.info.declared_l0 is None else f" Its file says that {sae.info.declared_l0:g} fire per token."
    return f"""{_head(sae.info.model)}# {sae.d_sae:,} features at {_code(site)}

A {sae.gate} {kind} of {_code(sae.info.model or "an unnamed model")} with {sae.d_sae:,} features.{sparse}

## Use

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


def _code(value: str) -> str:
    return f"`{readable(clipped(value)).replace('`', 'ˋ').replace('|', '¦')}`"
