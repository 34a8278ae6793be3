"""Labels by reading: features' sheets out of an atlas into files, and answers back into a file of labels.

    python tools/sheets.py write ATLAS --first 400 --skip tools/default_labels.jsonl -o sheets
    python tools/sheets.py read answers/*.jsonl --to tools/default_labels.jsonl

`--first N` takes features that want words, those that fire most often first (gemscope.atlas.labels.wanting).
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gemscope as gs
from gemscope.atlas.bundled import BUNDLED
from gemscope.atlas.labels.answers import Answer, answer_of
from gemscope.atlas.labels.rules import SURE
from gemscope.atlas.labels.sheet import instructions, sheet
from gemscope.atlas.labels.wanting import wanting
from gemscope.checked import json_of
from gemscope.disk import written_aside
from gemscope.errors import GemscopeError, InputError

HEAD = """{instructions}

Answer with one line of JSON for each feature, in the order of the sheets, and nothing else:
{{"feature": 17, "text": "`of` after a number", "rule": "\\"of\\" after <number>"}}
{{"feature": 18, "text": "surname after a first name", "rule": ""}}
{{"feature": 19, "text": "unclear", "rule": ""}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    write = commands.add_parser("write", help="sheets of features, some to a file")
    write.add_argument("atlas", metavar="ATLAS", help="its folder; bundled: the one of the package")
    write.add_argument("features", nargs="*", type=int, metavar="FEATURE")
    write.add_argument("--first", type=int, metavar="N", help="the first N that want words, instead")
    write.add_argument("--skip", nargs="*", default=[], type=Path, metavar="FILE", help="leave out what these answer")
    write.add_argument("--sure", type=float, default=SURE, help=f"confidence of a rule that will do (default {SURE})")
    write.add_argument("--batch", type=int, default=40, help="features in a file (default 40)")
    write.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER")
    write.set_defaults(run=_write)
    read = commands.add_parser("read", help="check answers and put them into a file of labels")
    read.add_argument("answers", nargs="+", type=Path, metavar="ANSWERS")
    read.add_argument("--to", type=Path, required=True, metavar="FILE")
    read.add_argument("--atlas", default="bundled", metavar="ATLAS", help="that the features are of")
    read.set_defaults(run=_read)
    args = parser.parse_args()
    try:
        sys.exit(args.run(args))
    except GemscopeError as error:
        sys.exit(f"sheets: {error}")


def _write(args: argparse.Namespace) -> int:
    done = {line["feature"] for path in args.skip for line in map(json.loads, path.read_text().splitlines())}
    with gs.Atlas(BUNDLED if args.atlas == "bundled" else args.atlas) as atlas:
        chosen = args.features if args.first is None else wanting(atlas, sure=args.sure)
        chosen = [feature for feature in chosen if feature not in done][: args.first]
        args.out.mkdir(parents=True, exist_ok=True)
        for number, start in enumerate(range(0, len(chosen), args.batch), 1):
            pages = [sheet(atlas[feature]) for feature in chosen[start : start + args.batch]]
            text = "\n\n".join([HEAD.format(instructions=instructions()), *pages])
            (args.out / f"sheets-{number:03}.txt").write_text(text + "\n", encoding="utf-8")
    print(f"{len(chosen)} features in {-(-len(chosen) // args.batch)} files in {args.out}")
    return 0


def _read(args: argparse.Namespace) -> int:
    with gs.Atlas(BUNDLED if args.atlas == "bundled" else args.atlas) as atlas:
        living = {one.feature for one in atlas.summaries(limit=len(atlas), dead=False)}
    labels = {line["feature"]: line for line in map(json.loads, _lines(args.to))}
    new: dict[int, Answer] = {}
    wrong = unclear = 0
    for path in args.answers:
        for number, line in enumerate(_lines(path), 1):
            if not line.strip():
                continue
            try:
                feature, answer = _answer(line, living, new)
            except GemscopeError as error:
                print(f"{path}:{number}: {error}", file=sys.stderr)
                wrong += 1
                continue
            new[feature] = answer
            unclear += answer.unclear
    for feature, answer in new.items():
        if not answer.unclear:
            labels[feature] = {"feature": feature, "text": answer.text} | ({"rule": answer.rule} if answer.rule else {})
    with written_aside(args.to) as aside:
        lines = (json.dumps(labels[feature], ensure_ascii=False) for feature in sorted(labels))
        aside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"{len(new) - unclear} labels, {unclear} unclear, {wrong} wrong lines; {len(labels)} in {args.to}")
    return int(wrong > 0)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _answer(line: str, living: Iterable[int], before: Iterable[int]) -> tuple[int, Answer]:
    said = json_of(line, dict[str, Any], where="the line")
    feature = said.get("feature")
    if not isinstance(feature, int) or feature not in living:
        raise InputError(f"feature {feature!r} is none that fires in this atlas")
    if feature in before:
        raise InputError(f"feature {feature} is answered twice: the first answer stays")
    if unknown := said.keys() - {"feature", "text", "rule"}:
        raise InputError(f"{min(unknown)!r} is not known: expected feature, text and rule")
    return feature, answer_of(said.get("text", ""), said.get("rule", ""))


if __name__ == "__main__":
    main()
