"""The command that acts on features: steer."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemscope.cli import options
from gemscope.cli.bars import bars
from gemscope.cli.steering import Wanted, Work
from gemscope.edits import defaults
from gemscope.edits.strength import Amount
from gemscope.edits.ways import WAYS
from gemscope.errors import InputError

if TYPE_CHECKING:
    from gemscope.activations.model import LanguageModel
    from gemscope.edits.units import Units
    from gemscope.features.sae import SAE
    from gemscope.progress import Progress
    from gemscope.reports.dose import Dose
    from gemscope.reports.steer import Steered
    from gemscope.text.chat import OneText


def add_to(commands: Any) -> None:
    """steer."""
    steer = commands.add_parser(
        "steer",
        help="turn features up or down and see the text change",
        usage="gemscope steer [MODEL SAE] FEATURE=STRENGTH [FEATURE=STRENGTH ...] TEXT [options]",
        description="Writes on from TEXT twice, by the model as it is and with the features edited, with the same "
        "dice, and says how the edit changes each token's log-probability. Default model and SAE: the bundled ones. "
        "TEXT - reads stdin.",
        epilog="Example: gemscope steer 2852=2max 'I live in'. Strengths: 2max is twice the feature's largest "
        "activation, 0.5norm adds a vector half as long as activations are there (the median norm), 30 or 30raw is in "
        "units of its activation, as a number alone is everywhere; all three are reported. A feature alone is set to "
        f"{defaults.STRENGTH}: there text changes and mostly stays text; from {defaults.BREAKS}norm on it breaks down.",
    )
    steer.add_argument("words", nargs="+", metavar="[MODEL SAE] FEATURE=STRENGTH ... TEXT")
    steer.add_argument(
        "-n", type=int, help=f"samples of each (default {defaults.SAMPLES}; with --sweep {defaults.SWEPT})"
    )
    act = steer.add_argument_group("the edit")
    act.add_argument(
        "--how",
        choices=WAYS,
        default="add",
        metavar="HOW",
        help="; ".join(f"{name}: {way.does}" for name, way in WAYS.items())
        + ". Default add. Where the two were compared with care (Eiffel Tower Llama, Hugging Face 2025) clamp did "
        "better, as it does not pile up where the feature is active already; on the bundled model they are much alike. "
        "Clamping to 0 silences, adding 0 changes nothing",
    )
    act.add_argument(
        "--at", choices=("all", "prompt", "generated"), default="all", help="tokens that are edited (default all)"
    )
    act.add_argument("--every-token", action="store_true", help="special tokens, first positions and sinks too")
    text = steer.add_argument_group("the text")
    plain = defaults
    text.add_argument(
        "--temperature",
        type=float,
        default=plain.TEMPERATURE,
        help=f"default {plain.TEMPERATURE}; 0: the likeliest token",
    )
    text.add_argument("--seed", type=int, default=plain.SEED, help=f"of both texts' dice (default {plain.SEED})")
    text.add_argument("--max-new-tokens", type=int, default=plain.TOKENS, metavar="N", help=f"default {plain.TOKENS}")
    options.add_chat(steer)
    control = steer.add_argument_group("controls, beside the edit").add_mutually_exclusive_group()
    control.add_argument(
        "--random-feature", action="store_true", help="another feature of like maximum, at the same strength"
    )
    control.add_argument("--noise", action="store_true", help="a random vector as long, added")
    sweep = steer.add_argument_group("dose and response")
    sweep.add_argument(
        "--sweep",
        type=_numbers,
        metavar="S,S,...",
        help="strengths such as 0,0.5,1,2,4: a table and bars of the target's logit, perplexity and repetition. They "
        "stand for the first feature's strength, in its unit; further features keep their ratio to it",
    )
    sweep.add_argument(
        "--target",
        action="append",
        metavar="TOKEN",
        help="the token whose logit is followed, such as ' time' or id:NUMBER; may be given several times "
        "(default: the one that the feature promotes most by the logit lens)",
    )
    group = steer.add_argument_group("what strengths are measured against")
    group.add_argument("--tokens", type=int, default=20_000, help="about how many to measure on (default 20000)")
    options.add_atlas(group, "; its maxima, too, unless it was imported")
    group.add_argument(
        "--corpus",
        metavar="FILE",
        help="maxima measured on this text (default, without an atlas's: the bundled sample)",
    )
    steer.add_argument("--html", metavar="FILE", help="write the report as a page, too")
    options.add_json(steer)
    options.add_model(steer)
    options.add_sae(steer)
    options.add_hub(steer)
    steer.set_defaults(run=_steer, parser=steer)


# --- what is asked for --------------------------------------------------------------------------------------------

_FEATURE = re.compile(r"(\d+)(?:=(.*))?")


def _numbers(text: str) -> list[float]:
    """`0,0.5,1` as numbers."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of strengths: expected such as 0,0.5,1,2,4") from None


def _read(args: argparse.Namespace) -> tuple[str, str, Wanted, OneText]:
    """Model, SAE, features and text of the command line."""
    *words, text = args.words
    first = next((place for place, word in enumerate(words) if _is_feature(word)), len(words))
    named, features = words[:first], words[first:]
    if not features:
        hint = f"only {text!r} is given" if not words else "none of the words is one"
        args.parser.error(f"no feature: write FEATURE=STRENGTH before the text, such as 10004=2max ({hint})")
    if wrong := [word for word in features if not _is_feature(word)]:
        args.parser.error(f"{wrong[0]!r} stands among the features: a text of several words needs quotes")
    if len(named) not in (0, 2):
        args.parser.error(f"{named[0]!r} alone: MODEL and SAE go together")
    name, address = named or (options.DEFAULT, options.DEFAULT)
    wanted = dict(_wanted(args, word) for word in features)
    if len(wanted) < len(features):
        raise InputError("a feature is named twice: give each feature once, with one strength")
    return name, address, wanted, options.text_of(args, text)


def _is_feature(word: str) -> bool:
    return _FEATURE.fullmatch(word) is not None


def _wanted(args: argparse.Namespace, word: str) -> tuple[int, Amount | None]:
    found = _FEATURE.fullmatch(word)
    assert found is not None
    feature, given = int(found[1]), found[2]
    if given is None:
        return feature, defaults.STRENGTH if WAYS[args.how].takes == "a strength" else None
    try:
        amount = Amount.read(given)
    except InputError as error:
        raise InputError(f"{word}: {error}") from None
    if WAYS[args.how].takes == "nothing":
        raise InputError(f"{word}: --how {args.how} takes no strength: write {feature}")
    if WAYS[args.how].takes == "a factor" and given[-1].isalpha():
        raise InputError(f"{word}: --how {args.how} takes a factor, which has no unit: {feature}={amount.value:g}")
    return feature, amount


# --- the command --------------------------------------------------------------------------------------------------


def _steer(args: argparse.Namespace) -> int:
    name, address, wanted, text = _read(args)
    with bars() as progress:
        model = options.model_of(args, name, progress)
        sae = options.sae_of(args, address, progress, model)
        for feature in wanted:
            sae.direction(feature)  # a feature that there is not is the first thing to say
        units = _units(args, model, sae, progress)
        work = Work(args, model, sae, units, wanted, text, progress)
        reports, notes = work.sweep() if args.sweep else (work.texts(), [])
    notes.append(f"Units: largest activations and median norm on {units.tokens:,} tokens of {units.source}")
    if args.html:
        _write_page(args.html, reports, notes)
    if args.json:
        shown = reports[0].to_dict()
        if not args.sweep:
            shown["controls"] = [one.to_dict() for one in reports[1:]]
        shown["sae"] = sae.info.name
        shown["units"] = {"source": units.source, "tokens": units.tokens, "median_norm": units.median_norm}
        shown["notes"] = notes
        options.show(shown, True)
        return 0
    for report in reports:
        options.show(report, False)
        print()
    for note in notes:
        options.say(note)
    if reports[0].named:
        options.lead(args, next(iter(wanted)))
    return 0


def _units(args: argparse.Namespace, model: LanguageModel, sae: SAE, progress: Progress) -> Units:
    """By an atlas that was made with this SAE, the one named or the bundled one; else measured."""
    from gemscope.atlas.meaning import meanings
    from gemscope.atlas.units import measures, units_of
    from gemscope.edits.units import Units
    from gemscope.features.fit import require_fit

    require_fit(model, sae)
    with meanings(sae, args.atlas) as known_of:
        if not args.corpus and known_of is not None and measures(known_of.atlas.manifest, sae):
            return units_of(known_of.atlas, model, sae)
    text = options.corpus_of(args.corpus)
    return Units.measured(model, sae, text, tokens=args.tokens, progress=progress)


def _write_page(path: str, reports: Sequence[Steered | Dose], notes: Sequence[str]) -> None:
    from gemscope.disk import written_aside
    from gemscope.pages.standalone import sheet

    page = sheet([one._repr_html_() for one in reports], notes, title="gemscope steer")
    with written_aside(Path(path)) as file:
        file.write_text(page, encoding="utf-8")
