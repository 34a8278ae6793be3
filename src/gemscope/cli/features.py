"""Commands that show what features stand for: feature, search."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gemscope.cli import options
from gemscope.cli.bars import bars

if TYPE_CHECKING:
    from gemscope.atlas.dashboard import Dashboard
    from gemscope.atlas.reader import Atlas
    from gemscope.atlas.tokens import TokenHit


def add_to(commands: Any) -> None:
    """feature, search."""
    feature = commands.add_parser(
        "feature",
        help="a feature's page: what it stands for, where it fires, what it promotes",
        description="Prints features' pages from an atlas (default: the bundled one).",
    )
    feature.add_argument("features", nargs="+", type=int, metavar="FEATURE")
    options.add_atlas(feature)
    options.add_json(feature)
    feature.set_defaults(run=_feature, parser=feature)

    search = commands.add_parser(
        "search",
        help="find features by what they stand for, by a token that they fire on or promote, or by a text",
        usage="gemscope search WORD ... [options]\n       gemscope search --on TOKEN [options]\n"
        "       gemscope search --promotes TOKEN [options]\n"
        "       gemscope search [MODEL SAE] --text TEXT [options]",
        description="Looks in the labels of an atlas (default: the bundled one), and for tokens that read so, "
        "which features fire on and, by the measured effect of their site, promote. With "
        "--text it reads a text through a model and an SAE (default: the bundled ones) for the features that say most "
        "about it.",
    )
    search.add_argument("words", nargs="*", metavar="WORD")
    kind = search.add_mutually_exclusive_group()
    kind.add_argument("--on", metavar="TOKEN", help="a token on which they fire most strongly")
    kind.add_argument("--promotes", metavar="TOKEN", help="a token that they make the model write")
    kind.add_argument("--text", help="a text on which they fire; - reads stdin")
    search.add_argument("--limit", type=int, default=20, help="features shown of each kind (default 20)")
    options.add_atlas(search)
    options.add_json(search)
    options.add_chat(search)
    options.add_model(search)
    options.add_sae(search)
    options.add_hub(search)
    search.set_defaults(run=_search, parser=search)


def _feature(args: argparse.Namespace) -> int:
    from gemscope.pages.feature import Printed

    with closing(options.atlas_of(args)) as atlas:
        pages = [atlas[index] for index in args.features]
    if args.json:
        options.show([page.to_dict() for page in pages] if len(pages) > 1 else pages[0], True)
        return 0
    links = options.links_to(atlas)
    for page in pages:
        if page is not pages[0]:
            print()
        options.show(Printed(page, atlas.manifest, links), False)
    if len(pages) == 1:
        options.lead(args, None, *_ways(args, pages[0]))
    return 0


def _ways(args: argparse.Namespace, page: Dashboard) -> Iterator[tuple[str, list[str]]]:
    """Where to go on from a feature's page."""
    if page.neighbours:
        yield "what is nearest to it?", ["feature", str(page.neighbours[0].feature), *options.atlas_words(args)]
    if not args.atlas and not page.dead:
        yield "what does it do to a text?", ["steer", f"{page.index}=2max", "I think that"]


def _search(args: argparse.Namespace) -> int:
    if args.text is not None:
        return _on_text(args)
    alone = args.on if args.on is not None else args.promotes
    if alone is not None and args.words:
        args.parser.error(f"--{'on' if args.on is not None else 'promotes'} TOKEN stands alone: no words beside it")
    from gemscope.pages.listing import Found

    text = alone or " ".join(args.words)
    if not text.strip():
        args.parser.error("nothing to search for: give words, a token with --on or --promotes, or a text with --text")
    with closing(options.atlas_of(args)) as atlas:
        labelled = [] if alone else atlas.search(text, limit=args.limit)
        on_token = [] if args.promotes else _on_tokens(atlas, text, args.limit)
        promoting = [] if args.on else atlas.promoting(text, limit=args.limit)
        missing = atlas.manifest.no_effect if atlas.manifest.effect is None else ""
    if args.json:
        options.show(
            {
                "labels": list(map(asdict, labelled)),
                "tokens": [
                    {**asdict(hit.summary), "strength": hit.strength, "examples": hit.examples} for hit in on_token
                ],
                "promoting": [
                    {**asdict(one.summary), "value": one.value, "stands_out": one.stands_out, "place": one.place}
                    for one in promoting
                ],
            },
            True,
        )
        return 0
    first = next(iter([*labelled, *(hit.summary for hit in on_token), *(one.summary for one in promoting)]), None)
    if first is None and args.promotes and missing != "":
        options.say(f"this atlas has no measured effect: {missing or 'gemscope atlas effect puts one in'}")
        return 0
    if first is None:
        does = "promotes" if args.promotes else "has" if args.on else "has a label or"
        options.say(f"no feature {does} a token like {text!r}")
        return 0
    links = options.links_to(atlas)
    if labelled:
        options.show(Found("Whose label says so", labelled, links), False)
    if on_token:
        print("\n" * bool(labelled), end="")
        options.show(Found("That fire on such a token", on_token, links), False)
    if promoting:
        print("\n" * bool(labelled or on_token), end="")
        options.show(Found("That promote such a token", promoting, links), False)
    options.lead(args, first.feature)
    return 0


def _on_text(args: argparse.Namespace) -> int:
    from gemscope.reports.look import look

    if len(args.words) not in (0, 2):
        args.parser.error(f"{len(args.words)} words beside --text: MODEL and SAE go together")
    if args.limit < 1:
        args.parser.error(f"--limit {args.limit}: at least one feature must be asked for")
    name, address = args.words or (options.DEFAULT, options.DEFAULT)
    text = options.text_of(args, args.text)
    with bars() as progress:
        model = options.model_of(args, name, progress)
        sae = options.sae_of(args, address, progress, model)
        # One token may have all of them.
        seen = look(model, sae, text, k=args.limit, foremost=args.limit, order="telling", atlas=args.atlas)
    found = [{**asdict(one), "token": seen.tokens[one.position].token} for one in seen.foremost]
    if args.json:
        options.show({"model": seen.model, "sae": seen.sae, "text": args.text, "features": found}, True)
        return 0
    if not found:
        options.say("no token of that text counts: only special tokens or the first position were given")
        return 0
    options.say("That say most about this text, each on the token where it says most")
    options.show(seen.standing_out(), False)
    options.lead(args, seen.foremost[0].feature)
    return 0


def _on_tokens(atlas: Atlas, text: str, limit: int) -> list[TokenHit]:
    """Features whose examples peak on tokens that read so, those with most examples first, each once."""
    hits = [hit for id_, *_ in atlas.tokens_like(text, 4) for hit in atlas.by_token(id_, limit=limit)]
    best = sorted(hits, key=lambda hit: (-hit.examples, -hit.strength, hit.summary.feature))
    kept: dict[int, TokenHit] = {}
    for hit in best:
        kept.setdefault(hit.summary.feature, hit)
    return list(kept.values())[:limit]
