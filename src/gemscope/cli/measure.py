"""Commands that measure what features do: attribute, effect, probe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemscope.cli import options
from gemscope.cli.bars import bars

if TYPE_CHECKING:
    from gemscope.text.corpus import Corpus


def add_to(commands: Any) -> None:
    """attribute, effect, probe."""
    attribute = commands.add_parser(
        "attribute",
        help="which features cause a prediction, checked by ablating them",
        usage="gemscope attribute [MODEL SAE] TEXT [options]",
        description="Gradient × activation for each feature on each token of a text (default: the bundled model and "
        "SAE), and what happens when the strongest are really ablated. TEXT - reads stdin.",
    )
    attribute.add_argument("words", nargs="+", metavar="[MODEL SAE] TEXT")
    attribute.add_argument(
        "--target",
        metavar="TOKEN",
        help="the token whose logit is looked into: its text, leading blank included, or id:NUMBER (default: the "
        "likeliest next token)",
    )
    attribute.add_argument("--against", metavar="TOKEN", help="another token: look into the difference of their logits")
    attribute.add_argument(
        "--position", type=int, default=-1, help="after which token the prediction is made (default -1: the last)"
    )
    attribute.add_argument("-k", type=int, default=20, help="features shown and ablated (default 20)")
    attribute.add_argument("--no-verify", action="store_true", help="ablate nothing: predicted effects alone")
    options.add_chat(attribute)
    _common(attribute)
    attribute.set_defaults(run=_attribute, parser=attribute)

    effect = commands.add_parser(
        "effect",
        help="which tokens features promote, by what the model makes of them",
        usage="gemscope effect [MODEL SAE [CORPUS]] --features NUMBERS [options]",
        description="The mean Jacobian from the site where the SAE writes to the logits over text (default: the "
        "bundled model, SAE and sample), and the tokens that features promote by it, beside those of the direct path. "
        "Without a --file these features alone are measured, in seconds; with one every feature of the site, in a "
        "minute or more, and it is kept there: stopped, it goes on when called again.",
    )
    effect.add_argument("words", nargs="*", metavar="[MODEL SAE [CORPUS]]")
    effect.add_argument("--features", required=True, metavar="NUMBERS", help="parted by commas, as in 263,8029")
    effect.add_argument(
        "--file",
        metavar="FILE",
        help="the effect of the whole site is read from there if it is there, else measured and kept there",
    )
    effect.add_argument("--tokens", type=int, default=160, help="about how many tokens are read (default 160)")
    effect.add_argument("--length", type=int, default=32, help="tokens of a row of text (default 32)")
    effect.add_argument(
        "--part",
        choices=("all", "this", "later"),
        default="all",
        help="the logits of this position, of later ones, or all (default)",
    )
    effect.add_argument("-k", type=int, default=8, help="tokens shown each way (default 8)")
    _common(effect)
    effect.set_defaults(run=_effect, parser=effect)

    probe = commands.add_parser(
        "probe",
        help="can classes of text be told apart by a few features?",
        usage="gemscope probe [MODEL SAE] DATASET [options]",
        description="k-sparse probing: logistic regression on the k features that differ most between classes of text, "
        "beside the activations that the SAE reads. DATASET is a .jsonl, .csv or .parquet file with a text and a label "
        "in each row, or `sample`: the bundled text, by source.",
    )
    probe.add_argument("words", nargs="+", metavar="[MODEL SAE] DATASET")
    probe.add_argument("--text", default="text", metavar="FIELD", help="field of the texts (default text)")
    probe.add_argument("--label", metavar="FIELD", help="field of the labels (default label; for sample: source)")
    probe.add_argument("--labels", metavar="A,B", help="only texts with these labels, parted by commas")
    probe.add_argument("--k", default="1,2,5", metavar="NUMBERS", help="numbers of features to try (default 1,2,5)")
    probe.add_argument("--held-out", type=float, default=0.25, help="share of texts tested on (default 0.25)")
    probe.add_argument("--limit", type=int, default=2_000, help="about how many texts are read (default 2000; 0: all)")
    probe.add_argument("--length", type=int, default=128, help="tokens read of each text (default 128)")
    probe.add_argument("--seed", type=int, default=0, help="of the split (default 0)")
    probe.add_argument("--html", metavar="FILE", help="write the figures and a chart there as one HTML file")
    _common(probe)
    probe.set_defaults(run=_probe, parser=probe)


def _common(command: argparse.ArgumentParser) -> None:
    options.add_atlas(command)
    options.add_json(command)
    options.add_model(command)
    options.add_sae(command)
    options.add_hub(command)


def _named(args: argparse.Namespace, thing: str) -> tuple[str, str, str]:
    """MODEL, SAE and the thing."""
    if len(args.words) not in (1, 3):
        args.parser.error(f"{len(args.words)} arguments: give {thing}, or MODEL, SAE and {thing} (blanks in quotes)")
    *named, last = args.words
    name, address = named or (options.DEFAULT, options.DEFAULT)
    return name, address, last


def _attribute(args: argparse.Namespace) -> int:
    from gemscope.reports.attribute import attribute

    name, address, text = _named(args, "TEXT")
    given = options.text_of(args, text)
    with bars() as progress:
        model = options.model_of(args, name, progress)
        sae = options.sae_of(args, address, progress, model)
        found = attribute(
            model,
            sae,
            given,
            args.target,
            against=args.against,
            position=args.position,
            k=args.k,
            verify=not args.no_verify,
            atlas=args.atlas,
        )
    options.show(found, args.json)
    if found.rows:
        chat = [f"--{name}" for name in ("chat", "turns") if getattr(args, name)]
        look = ["look", *chat, *args.words]
        options.lead(args, found.rows[0].feature if found.named else None, ("which features fire on each token?", look))
    return 0


def _effect(args: argparse.Namespace) -> int:
    from gemscope.checked import existing
    from gemscope.features.effect import Effect, effect
    from gemscope.features.fit import require_fit, sites_of
    from gemscope.reports.effects import effects
    from gemscope.text.corpus import Corpus

    if len(args.words) == 1 or len(args.words) > 3:
        args.parser.error(f"{len(args.words)} arguments: MODEL and SAE go together")
    name, address, *rest = args.words or (options.DEFAULT, options.DEFAULT)
    features = options.numbers("--features", args.features)
    with bars() as progress:
        kept: Effect | Corpus = options.corpus_of(*rest)
        how = {"tokens": args.tokens, "length": args.length}
        if there := args.file and existing(args.file):
            kept = Effect.load(there)
        model = options.model_of(args, name, progress)
        sae = options.sae_of(args, address, progress, model)
        require_fit(model, sae)
        for feature in features:
            sae.direction(feature)  # what is wrong with a number comes out before minutes have gone by
        if args.file and isinstance(kept, Corpus):
            kept = effect(model, sites_of(sae)[1], kept, to=args.file, progress=progress, **how)
        found = effects(
            model, sae, kept, features, k=args.k, part=args.part, atlas=args.atlas, progress=progress, **how
        )
    options.show(found, args.json)
    options.lead(args, features[0] if found.named else None)
    return 0


def _probe(args: argparse.Namespace) -> int:
    from gemscope.reports.probing import sparse_probe
    from gemscope.reports.separating import require_sklearn

    name, address, dataset = _named(args, "DATASET")
    require_sklearn()  # before anything large is loaded
    k = options.numbers("--k", args.k)
    with bars() as progress:
        model = options.model_of(args, name, progress)
        sae = options.sae_of(args, address, progress, model)
        found = sparse_probe(
            model,
            sae,
            _dataset(dataset),
            k=k,
            text=args.text,
            label=args.label,
            labels=None if args.labels is None else args.labels.split(","),
            held_out=args.held_out,
            limit=args.limit or None,
            length=args.length,
            seed=args.seed,
            atlas=args.atlas,
            progress=progress,
        )
    options.show(found, args.json, args.html)
    if found.named:
        options.lead(args, found.features[0])
    return 0


def _dataset(word: str) -> str | Corpus:
    if word != "sample" or Path(word).exists():
        return word
    from gemscope.text.corpus import Corpus

    return Corpus.sample()
