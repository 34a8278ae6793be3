"""Every page, of values made up by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from msgspec import structs

from gemscope.app.requests import Cause as Asking
from gemscope.app.requests import Steering
from gemscope.app.search import Reading
from gemscope.app.steer_view import Dial
from gemscope.app.steering import Run
from gemscope.atlas.dashboard import (
    Dashboard,
    Example,
    Explanation,
    Glance,
    Interval,
    Kindred,
    Life,
    Logit,
    Neighbour,
    Partner,
    Related,
    Summary,
)
from gemscope.atlas.files.manifest import Manifest, Part
from gemscope.atlas.labels.explanations import Standing
from gemscope.edits.strength import Amount, Strength
from gemscope.features.histogram import Histogram
from gemscope.pages.embed import Embed
from gemscope.pages.links import ServerLinks
from gemscope.pages.render import render
from gemscope.pages.standalone import feature_document
from gemscope.reports.attribution import Attribution, Cause, Target
from gemscope.reports.look import Fired, Look, Token
from gemscope.reports.steer import Pair, Steered
from gemscope.reports.writing import Continuation

LINKS = ServerLinks("tiny-model", "1-res-tiny")
STATIC = files("gemscope.pages") / "static"
HOSTILE = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(2)>",
    "</textarea></title></style>",
    "\u202eevil\u2066\u200f",
    "\x00\x07\x1b[31m",
    "{{ 7*7 }}{% raw %}",
    "&lt;&amp;&#60;",
    "javascript:alert(3)",
    "\ud800",
    "x" * 100_000,
]


def example(
    tokens: list[str], values: list[float], interval: int | None = None, document: int = 3, source: str = "a book"
) -> Example:
    peak = max(range(len(values)), key=values.__getitem__)
    ids = list(range(len(tokens)))
    return Example(
        document=document, position=40, source=source, license="CC0", peak=peak, ids=ids, tokens=tokens, values=values,
        interval=interval,
    )  # fmt: skip


def related(label: str | None, *, later: bool = False, pages: str = "", **said: str) -> Related:
    kindred = Kindred(feature=5, cosine=0.9, correlation=0.8, both=120, effect=1.25, nearest=True, label=label)
    far = Kindred(feature=6, cosine=None, correlation=-0.01, both=0, effect=None, nearest=False)
    names = {"sae": "org/tiny-sae", "corpus": "sample", "why": ""} | said
    return Related(
        digest="ab" * 32,
        site="2.res" if later else "0.res",
        later=later,
        source="",
        tokens=12_000,
        effect_tokens=160,
        features=[kindred, far],
        pages=pages,
        **names,
    )


def dashboard(label: str | None = "names of seas", **changes: Any) -> Dashboard:
    words = [" the", " Sea", " of", " Japan", "\n", " is"] * 10
    strong = [0.0] * 60
    strong[31], strong[25], strong[2] = 8.0, 2.0, 1.0
    weak = [0.0] * 60
    weak[31] = 1.5
    explanations = [
        Explanation(id=2, text=label or "", author="ada"),
        Explanation(id=1, text="bodies of water", method="max-act", score=0.71),
    ]
    return replace(
        Dashboard(
            model="tiny-model",
            source="1-res-tiny",
            index=12,
            count=150,
            tokens=12_000,
            max=8.0,
            mean=1.25,
            encoder_cosine=0.75,
            decoder_norm=1.0,
            histogram=Histogram(0.0, 0.8, [100, 30, 10, 5, 3, 1, 0, 0, 0, 1]),
            intervals=[Interval(0.0, 4.0, 145, 145 / 150), Interval(4.0, 8.0, 5, 5 / 150)],
            examples=[example(words, strong), example(words, weak, interval=0)],
            promoted=[Logit(4, " Ocean", 2.0), Logit(5, " coast", 1.0)],
            suppressed=[Logit(6, "def", -1.5)],
            logit_histogram=Histogram(-2.0, 0.5, [1, 5, 20, 60, 90, 40, 9, 1]),
            neighbours=[Neighbour(7, 0.9, "names of rivers"), Neighbour(8, 0.5)],
            coactive=[Partner(9, 0.25, 0.5, "capital letters")],
            explanations=explanations if label else [],
        ),
        **changes,
    )


DEAD = dashboard(None, count=0, max=0.0, mean=0.0, histogram=None, intervals=[], examples=[], coactive=[])
PART = Part(name="sample", digest="ab", rows=100, documents=40, counted=12_000, masked={"special": 100, "sink": 7})
MANIFEST = Manifest(
    model="org/Tiny-Model",
    model_id="tiny-model",
    source_id="1-res-tiny",
    revision="c0ffee" * 6,
    sae="org/tiny-sae",
    sae_digest="5eed" * 16,
    site="1.res",
    site_out="1.res",
    gate="jumprelu",
    d_sae=40,
    parts=(PART,),
    length=128,
    before=32,
    after=31,
    bos=False,
    logits="final norm's gain folded in, centred",
    no_logits=None,
    coactivation="all counted tokens",
    options={},
    versions={"gemscope": "0.1.0"},
)
SUMMARIES = [
    Summary(0, 120, 0.01, 8.0, 1.5, "names of seas", " Sea"),
    Summary(1, 6, 0.0005, 3.0, 1.0, None, "\n"),
    Summary(2, 0, 0.0, 0.0, 0.0),
]
QUERY: dict[str, Any] = {
    "order": "density",
    "descending": True,
    "dead": None,
    "labelled": None,
    "min_density": 0.001,
    "max_density": None,
    "min_max": None,
    "max_max": None,
    "text": "sea",
    "offset": 0,
    "limit": 3,
}
LOOK = Look(
    model="org/Tiny-Model",
    sae="org/tiny-sae",
    site="1.res",
    tokens=(
        Token("<bos>", 0, False, 30, (Fired(5, 99.0),)),
        Token(" Sea", 1, True, 2, (Fired(12, 8.0), Fired(7, 2.0))),
        Token(" of", 2, False, 40, (Fired(5, 50.0),)),
    ),
    l0=2.0,
    explained_variance=float("nan"),
)


@dataclass
class Hit:
    summary: Summary
    strength: float
    examples: int


def continuation(*tokens: str, change: float = 0.0) -> Continuation:
    before = tuple(-1.0 - place for place in range(len(tokens)))
    after = tuple(value + change for value in before)
    ids = tuple(range(len(tokens)))
    return Continuation(text="".join(tokens), tokens=tokens, ids=ids, logprobs=before, edited=after, ended=False)


def steered(*tokens: str, name: str = "steered", edit: str = "add feature 12", samples: int = 1) -> Run:
    pair = Pair(default=continuation(" a", " b"), steered=continuation(*tokens, change=2.0))
    return Run(
        name,
        Steered(
            model="org/Tiny-Model", prompt="Sea", edits=(edit,), strengths=(Strength(4.0, 0.5, 0.1),),
            pairs=(pair,) * samples, temperature=0.5, seed=16, max_new_tokens=4, at="all",
            control=None if name == "steered" else edit,
        ),
    )  # fmt: skip


ASKED = Steering(
    features=(12, 7),
    strengths=("2max", -0.5),
    factors=(0.0, 1.5),
    prompt="Sea of",
    n=2,
    random=True,
)


def dialled(label: str | None = "names of seas", token: str | None = " Sea") -> list[Dial]:
    return [
        Dial(replace(SUMMARIES[0], feature=12, label=label), Amount(2.0, "max"), 0.0, 0.25, "/without/12"),
        Dial(replace(SUMMARIES[1], feature=7, token=token), Amount(-0.5), 1.5, None, "/without/7"),
    ]


def steer_page(**values: Any) -> str:
    found: dict[str, Any] = {
        "manifest": MANIFEST, "live": True, "why": "", "several": True, "asked": ASKED, "rows": dialled(),
        "suggestions": [], "suggestions_note": "", "presets": [], "runs": None, "error": None, "note": "",
    }  # fmt: skip
    return render("steer.html", links=LINKS, **{**found, **values})


def attribution(token: str = " Sea", note: str = "logits come in steps") -> Attribution:
    return Attribution(
        model="org/Tiny-Model", sae="org/tiny-sae", site="1.res", dtype="float32", tokens=("<bos>", token, " of"),
        counted=(False, True, True), position=1, target=Target(id=4, token=token, logit=9.5, probability=0.25),
        against=None, logit=9.5,
        rows=(
            Cause(feature=12, position=1, token=token, activation=8.0, predicted=2.0, measured=1.5),
            Cause(feature=7, position=1, token=token, activation=1.0, predicted=-0.5, measured=None),
        ),
        by_feature=(), together_predicted=1.5, together_measured=1.25, correlation=0.9, features=3.0, error=-0.5,
        bias=1.0, skip=0.0, uncounted=0.25, total=3.75, features_by_token=(0.0, 3.0, 0.0),
        error_by_token=(0.0, -1.0, 0.0), active=40, notes=(note,),
    )  # fmt: skip


def feature_page(feature: Dashboard, **changes: Any) -> str:
    values: dict[str, Any] = {
        "feature": feature,
        "manifest": MANIFEST,
        "live": True,
        "previous": 11,
        "following": 13,
        "embed": None,
        "test_text": "",
    }
    return render("feature.html", links=LINKS, **{**values, **changes})


@cache
def all_pages(label: str | None = "names of seas", token: str = " Sea") -> dict[str, str]:
    """One of each, with a label and a token of ours wherever one is shown."""
    summaries = [replace(SUMMARIES[0], label=label, token=token), *SUMMARIES[1:]]
    words, typed = [token, " of", " Japan"], token[:5000]
    feature = dashboard(
        label,
        examples=[example(words, [0.5, 8.0, 0.0], source=label or ""), example(words, [1.5, 0.0, 0.0], interval=0)],
        promoted=[Logit(1, token, 2.0)],
        neighbours=[Neighbour(7, 0.9, label)],
        coactive=[Partner(9, 0.25, 0.5, label)],
        related=[
            related(label, sae=label or "", corpus=label or "", why=label or ""),
            related(label, later=True, pages="/tiny-model/2-res-tiny"),
        ],
        life=Life(born=label or "", gone="1.res", chain=[label or "", "1.res", "2.res"]),
    )
    look = replace(LOOK, tokens=tuple(replace(one, token=token) for one in LOOK.tokens))
    manifest = replace(MANIFEST, sae=label or "", parts=(replace(PART, name=label or ""),))
    points = (np.arange(3), np.array([0.1, 0.01, 0.001]), np.array([1.0, 2.0, 3.0]))
    home = [{"manifest": manifest, "living": 38, "dead": 2, "links": LINKS, "standing": Standing(14, 10, 6)}]
    begin = {"striking": summaries, "glances": {0: Glance(words, 0, feature.histogram)}, "texts": [typed]}
    begin |= {"live": True, "why": label or "x"}
    found = [{"summary": summaries[0], "values": [0.0, 3.0, 1.0]}]
    search = {"manifest": manifest, "text": typed, "note": label, "live": True}
    search |= {"summaries": summaries, "tokens": [(4, token, 7)], "token": 4, "hits": [Hit(summaries[0], 0.5, 3)]}
    search |= {"strings": words, "counted": [False, True, True], "found": found, "firing": 4, "missing": 99}
    search |= {"readings": [Reading("label", 3), Reading("token", 7, token), Reading("text", None)], "total": 9}
    search |= {"asked": "any", "offset": 3, "limit": 3, "glances": {0: Glance(words, 0, feature.histogram)}}
    prompt = {"manifest": manifest, "live": True, "text": typed, "look": look, "labels": {12: label or "", 7: "b"}}
    prompt |= {"pinned": 12, "pinned_values": [0.0, 8.0, 0.0], "error": label, "start": 0, "span": 2}
    return {
        "feature": feature_page(feature, writable=True, test_text=typed),
        "dead": feature_page(DEAD),
        "embed": feature_page(feature, embed=Embed(default_test_text=typed), test_text=typed),
        "home": render("home.html", links=LINKS, atlases=home, **begin),
        "homes": render("home.html", links=ServerLinks(), atlases=home * 2, **{**begin, "live": False}),
        "browse": render(
            "browse.html",
            links=LINKS,
            manifest=manifest,
            summaries=summaries,
            total=9,
            glances={0: Glance(words, 0, feature.histogram)},
            query=QUERY | {"text": typed},
            points=points,
        ),
        **{kind: render("search.html", links=LINKS, kind=kind, **search) for kind in ("label", "token", "text")},
        "prompt": render("prompt.html", links=LINKS, **prompt),
        "error": render("error.html", links=ServerLinks(), status=404, title=label or "x", message=token),
        "test": render(
            "test_result.html",
            links=LINKS,
            tokens=words,
            values=[0.0, 3.0, 1.0],
            counted=[False, True, True],
            max=8.0,
            feature=12,
        ),
        "note": render("error_note.html", links=LINKS, message=label or "x"),
        "steer": steer_page(
            manifest=manifest,
            asked=structs.replace(ASKED, prompt=typed[:2000], add=typed[:900]),
            rows=dialled(label, token),
            suggestions=summaries,
            suggestions_note=label or "x",
            runs=[
                steered(token, " of", edit=label or "x", samples=2),
                steered(token, name="noise", edit=label or "x", samples=2),
            ],
            error=label or "x",
        ),
        "steer-off": steer_page(live=False, why=label or "x"),
        "panel": feature_page(feature, asked=ASKED, rows=dialled(label, token)[:1]),
        "causes": render(
            "attribute.html",
            links=LINKS,
            manifest=manifest,
            live=True,
            asked=Asking(text=typed, target=typed[:200], against=typed[:200]),
            found=attribution(token, label or "x"),
            labels={12: label or ""},
            hints={7: token},
            address="/short",
            error=label,
        ),
        "explanations": render("explanations.html", links=LINKS, feature=feature, writable=True),
        "alone": feature_document(feature, manifest),
    }
