"""Commands for lists of one's own: list show, add, remove, export, import."""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path
from typing import Any

from gemscope.cli import options


def add_to(commands: Any) -> None:
    """list show, list add, list remove, list export, list import."""
    group = commands.add_parser(
        "list",
        help="your own lists of features: show, add, remove, export, import",
        description="Lists of features with notes, the same that the browser shows. They lie in $GEMSCOPE_DATA/lists, "
        "else in ~/.local/share/gemscope/lists.",
    ).add_subparsers(title="commands", metavar="COMMAND", required=True)

    show = group.add_parser("show", help="all lists, or the features of one")
    show.add_argument("name", nargs="?", metavar="NAME")
    options.add_json(show)
    show.set_defaults(run=_show, parser=show)

    for word, run, said in (
        ("add", _add, "take features into a list"),
        ("remove", _remove, "take features out of one"),
    ):
        one = group.add_parser(word, help=said)
        one.add_argument("name", metavar="NAME")
        one.add_argument("features", nargs="+", type=int, metavar="FEATURE", help="of the atlas")
        if run is _add:
            one.add_argument("--note", default="", help="what to remember of them")
        options.add_atlas(one)
        options.add_json(one)
        one.set_defaults(run=run, parser=one)

    out = group.add_parser(
        "export",
        help="a list as JSON, or as an HTML file with its features' pages",
        usage="gemscope list export NAME -o OUT.json|OUT.html [--atlas ATLAS]",
        description="The JSON is what Neuronpedia makes lists of. An HTML file needs nothing beside it.",
    )
    out.add_argument("name", metavar="NAME")
    out.add_argument("-o", "--out", required=True, type=Path, metavar="OUT", help="ends in .json or .html")
    options.add_atlas(out, ", and are in the HTML file")
    out.set_defaults(run=_export, parser=out)

    taken = group.add_parser(
        "import",
        help="a list from JSON: one that was exported, or Neuronpedia's",
        description="Features that a list of that name does not have yet go behind its own.",
    )
    taken.add_argument("path", type=Path, metavar="FILE")
    taken.add_argument("--name", default="", help="another name for it")
    options.add_json(taken)
    taken.set_defaults(run=_import, parser=taken)


def _show(args: argparse.Namespace) -> int:
    from gemscope.atlas.notes.lists import Lists
    from gemscope.pages.tables import Table
    from gemscope.text.printable import readable

    lists = Lists()
    if args.name is not None:
        options.show(lists[args.name], args.json)
        return 0
    if args.json:
        options.show({"folder": str(lists.folder), "lists": [one.to_dict() for one in lists]}, True)
        return 0
    heads = ("list", "features", "about")
    rows = [(readable(one.name), f"{len(one):,}", readable(one.about)) for one in lists]
    if rows:
        options.show(Table(heads, rows, left=("list", "about"), wraps=("about",)), False)
    for problem in lists.problems:
        options.say(problem)
    if not rows:
        options.say("no list yet")
        options.lead(args, None, ("how is one begun?", ["list", "add", "seas", "12", "--note", "why"]))
    return 0


def _add(args: argparse.Namespace) -> int:
    from gemscope.atlas.notes.lists import Lists

    with closing(options.atlas_of(args)) as atlas:
        pages = [atlas[index] for index in args.features]
    options.show(Lists().add(args.name, *pages, note=args.note), args.json)
    return 0


def _remove(args: argparse.Namespace) -> int:
    from gemscope.atlas.notes.lists import Lists

    with closing(options.atlas_of(args)) as atlas:
        of = atlas.manifest.model_id, atlas.manifest.source_id
    options.show(Lists().remove(args.name, *((*of, index) for index in args.features)), args.json)
    return 0


def _export(args: argparse.Namespace) -> int:
    from gemscope.atlas.notes.lists import Lists
    from gemscope.disk import written_aside

    kind = args.out.suffix.lower()
    if kind not in (".json", ".html"):
        args.parser.error(f"-o {args.out}: expected a name that ends in .json or .html")
    found = Lists()[args.name]
    text = found.to_json() if kind == ".json" else _shared(args, found)
    with written_aside(args.out) as file:
        file.write_text(text, encoding="utf-8", errors="replace")
    print(args.out)
    return 0


def _shared(args: argparse.Namespace, found: Any) -> str:
    from gemscope.atlas.notes.share import shared

    with closing(options.atlas_of(args)) as atlas:
        manifest = atlas.manifest

        def find(kept: Any) -> Any:
            here = (kept.model, kept.source) == (manifest.model_id, manifest.source_id) and kept.index < len(atlas)
            return (atlas[kept.index], manifest) if here else None

        return shared(found, find)


def _import(args: argparse.Namespace) -> int:
    from gemscope.atlas.notes.kept import from_json
    from gemscope.atlas.notes.lists import Lists
    from gemscope.checked import LARGE, bytes_of

    given = from_json(bytes_of(args.path, most=LARGE), where=str(args.path), name=args.name)
    options.show(Lists().put(given), args.json)
    return 0
