"""Options that several commands share, and what is made of them."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemscope.progress import Progress

if TYPE_CHECKING:
    from gemscope.activations.model import LanguageModel
    from gemscope.atlas.reader import Atlas
    from gemscope.features.cross_layer import CrossLayerTranscoder
    from gemscope.features.sae import SAE
    from gemscope.features.scope import Scope
    from gemscope.pages.links import Links
    from gemscope.text.chat import OneText
    from gemscope.text.corpus import Corpus

DEFAULT = "smollm2"
"""The model and the SAE that ship with this package, when none is named."""


def add_hub(command: argparse.ArgumentParser) -> None:
    """Where weights come from."""
    hub = command.add_argument_group("where weights come from")
    hub.add_argument("--token", help="Hugging Face token (else the one `hf auth login` stored)")
    hub.add_argument("--cache-dir", help="cache of the Hub's files (else HF_HOME's)")
    hub.add_argument("--offline", action="store_true", default=None, help="use what is in the cache, ask nobody")


def add_model(command: argparse.ArgumentParser) -> None:
    """How the model is loaded."""
    group = command.add_argument_group("how the model is loaded")
    group.add_argument("--model-revision", metavar="REV", help="branch, tag or commit of the model's repository")
    group.add_argument(
        "--dtype",
        default="auto",
        help="number format of the weights: auto (as stored; float32 where that is slow), float32, bfloat16, float16",
    )
    group.add_argument(
        "--device", default="auto", help="where model and SAE run: auto (CUDA, else MPS, else cpu), cuda:0, mps, cpu"
    )
    group.add_argument("--device-map", help="split the model over devices: auto, balanced (needs accelerate)")
    group.add_argument("--attn-implementation", metavar="NAME", help="eager, sdpa, flash_attention_2")


def add_sae(command: argparse.ArgumentParser) -> None:
    """How the SAE is loaded."""
    group = command.add_argument_group("how the SAE is loaded")
    group.add_argument("--sae-revision", metavar="REV", help="branch, tag or commit of the SAE's repository")
    group.add_argument(
        "--sae-device",
        default="auto",
        metavar="DEVICE",
        help="where the SAE runs (default: where the model does); cuda:0,cuda:1: a slice of its features on each",
    )
    group.add_argument("--site", help="where the SAE reads, such as 20.res (default: what its file says)")


def add_chat(command: argparse.ArgumentParser) -> None:
    """`--chat` and `--turns`."""
    group = command.add_argument_group("chat models").add_mutually_exclusive_group()
    group.add_argument(
        "--chat", action="store_true", help="TEXT is what a user says: a turn, put as the model's chat template has it"
    )
    group.add_argument(
        "--turns",
        action="store_true",
        help='TEXT is a whole chat in JSON: [{"role": "user", "content": "Hello"}, ...]; - reads it from stdin',
    )


def text_of(args: argparse.Namespace, text: str) -> OneText:
    """What TEXT stands for: itself, what stdin says, the user's turn, or the turns of a chat. In UTF-8, whatever the
    locale makes of its bytes.
    """
    text = os.fsencode(sys.stdin.read() if text == "-" else text).decode("utf-8", "surrogateescape")
    if not args.chat and not args.turns:
        return text
    from gemscope.text.chat import is_one_chat, turn_of

    if args.turns:
        from gemscope.checked import json_of
        from gemscope.errors import InputError

        turns: list[Any] = json_of(text, list, where="TEXT with --turns")
        if not is_one_chat(turns):
            raise InputError('TEXT with --turns: expected turns, such as [{"role": "user", "content": "Hello"}]')
        return turns
    return turn_of(text) if text else text


def add_atlas(command: argparse._ActionsContainer, beside: str = "") -> None:
    """`--atlas`; `beside` is what else it is good for in this command."""
    command.add_argument(
        "--atlas",
        metavar="ATLAS",
        help=f"an atlas of this SAE, whose labels name its features{beside} (default: the bundled one, of its SAE)",
    )


def atlas_of(args: argparse.Namespace) -> Atlas:
    """The atlas that is named, or the bundled one."""
    from gemscope.atlas.bundled import BUNDLED
    from gemscope.atlas.load import load_atlas

    names = ("token", "cache_dir", "offline")
    return load_atlas(args.atlas or BUNDLED, **{name: getattr(args, name, None) for name in names})


def links_to(atlas: Atlas) -> Links:
    """To its pages on a server of this user's that runs now, else to none."""
    from gemscope.app.running import links_to
    from gemscope.pages.links import NoLinks

    return links_to(atlas.manifest) or NoLinks()


def atlas_words(args: argparse.Namespace) -> list[str]:
    """What names it again in a command."""
    return ["--atlas", args.atlas] if args.atlas else []


def lead(
    args: argparse.Namespace,
    feature: int | None,
    *others: tuple[str, Sequence[str]],
    aside: bool = False,
) -> None:
    """Where to go on from a report: to what a feature is that it names, and to other commands, each with what it tells.
    A program that asked for JSON is told nothing. It goes to stderr where it is to stand `aside`.
    """
    if args.json or (feature is None and not others):
        return
    ways = [] if feature is None else [("what is that feature?", ["feature", str(feature), *atlas_words(args)])]
    ways += [(why, [*words]) for why, words in others]
    told = [(f"Next: {why}", shlex.join(["gemscope", *words])) for why, words in ways]
    wide = max((len(why) for why, _ in told), default=0)
    # A command is one line, however long, so that it can be copied; where it does not fit it stands by itself.
    fits = not sys.stdout.isatty() or all(wide + 2 + len(words) <= _columns() for _, words in told)
    file = sys.stderr if aside else None
    print(file=file)
    for why, words in told:
        print(f"{why:<{wide}}  {words}" if fits else f"{why}\n  {words}", file=file)


def say(text: str) -> None:
    """A sentence on stdout: in a terminal broken between words, else whole."""
    if sys.stdout.isatty():
        from rich.text import Text

        show(Text(text), False)
    else:
        print(text)


def _columns() -> int:
    return shutil.get_terminal_size().columns


def add_json(command: argparse.ArgumentParser) -> None:
    """`--json`."""
    command.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def corpus_of(*paths: str | None) -> Corpus:
    """The text of files, folders or patterns; none, or `sample` where nothing here is called so, is the bundled one."""
    from gemscope.text.corpus import Corpus

    given = [path for path in paths if path is not None]
    if not given or (given == ["sample"] and not Path("sample").exists()):
        return Corpus.sample()
    return Corpus.read(given)


def numbers(option: str, words: str) -> list[int]:
    """Whole numbers parted by commas. Raises InputError."""
    from gemscope.errors import InputError

    try:
        return [int(one) for one in words.split(",")]
    except ValueError as error:
        raise InputError(f"{option} {words}: expected whole numbers parted by commas, as in 1,2,5") from error


def model_of(args: argparse.Namespace, name: str, progress: Progress) -> LanguageModel:
    """The model that the options ask for."""
    from gemscope.activations.load import load_model

    with progress(f"load {name}", None, ""):
        return load_model(
            name,
            revision=args.model_revision,
            token=args.token,
            dtype=args.dtype,
            device=args.device,
            device_map=args.device_map,
            attn_implementation=args.attn_implementation,
            cache_dir=args.cache_dir,
            offline=args.offline,
            progress=progress,
        )


def sae_of(args: argparse.Namespace, name: str, progress: Progress, model: LanguageModel | None = None) -> SAE:
    """The SAE that the options ask for, and the model that it is for where one is loaded."""
    from gemscope.features.load import load_sae

    with progress(f"load {name}", None, ""):
        return load_sae(
            name,
            site=args.site,
            revision=args.sae_revision,
            token=args.token,
            cache_dir=args.cache_dir,
            offline=args.offline,
            device=args.sae_device.split(",") if "," in args.sae_device else args.sae_device,
            model=model,
            progress=progress,
        )


def scope_of(args: argparse.Namespace, name: str) -> Scope | None:
    """The scope that an address is of, where it is of one."""
    from gemscope.features.listing import is_scope, load_scope

    if not is_scope(name):
        return None
    return load_scope(
        name, revision=args.sae_revision, token=args.token, cache_dir=args.cache_dir, offline=args.offline
    )


def clt_of(args: argparse.Namespace, name: str, progress: Progress) -> CrossLayerTranscoder:
    """The cross-layer transcoder that the options ask for."""
    from gemscope.features.files.cross_layer import load_clt

    with progress(f"load {name}", None, ""):
        return load_clt(
            name,
            revision=args.sae_revision,
            token=args.token,
            cache_dir=args.cache_dir,
            offline=args.offline,
            device=args.sae_device,
        )


def show(value: Any, as_json: bool, page: str | None = None) -> None:
    """A report on stdout: its table, or its JSON; and as a page in a file, where one is named."""
    if page:
        from gemscope.disk import written_aside

        with written_aside(Path(page)) as file:
            file.write_text(value.to_html(), encoding="utf-8")
    if as_json:
        print(json.dumps(value.to_dict() if hasattr(value, "to_dict") else value, ensure_ascii=False, allow_nan=False))
        return
    if sys.stdout.isatty():
        from rich.console import Console

        Console(highlight=False).print(value, crop=False)  # an address stays whole, to be copied
    else:
        from gemscope.pages.plain import plain

        # Whole lines: rich would take a pipe for 80 columns wide and fold a long address.
        print(plain(value, width=160))
