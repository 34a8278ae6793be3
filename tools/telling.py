"""Which features of a token tell a reader something: the first five by activation beside the first five by what is telling.

tools/telling.json holds ten prompts, four tokens of each (those at a quarter, a half and three quarters of the counted
ones, and the last), and what a reader said of every feature that came first there, by either order or by others that were
tried (the square root of the share; without the labels' scores, or with more of them). The reader, a language model, saw
the label and five examples, and in which lists a feature was. A feature is telling on a token where what it stands for (its
label's first meaning; without a label what most of its examples have in common)

- is true of this token here: the token itself, its place beside the tokens next to it, or the subject of the text, and
- is not true of tokens of any kind.

Prints how many of the first five are, prompt by prompt, and how many of them fire on more than a twentieth of all tokens.
A feature that nobody judged counts as not telling, and is named: `--sheet` prints what is needed to judge it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gemscope as gs
from gemscope.atlas.bundled import BUNDLED
from gemscope.text.printable import readable

JUDGED = Path(__file__).with_name("telling.json")
ORDERS = ("activation", "telling")
FIRST = 5
DENSE = 0.05


def main() -> None:
    model, sae = gs.load_model(), gs.load_sae("smollm2")
    totals = {order: [0, 0] for order in ORDERS}
    unknown: dict[tuple[str, int], str] = {}
    print(f"{'prompt':<18}{''.join(f'{order:>12}' for order in ORDERS)}   of")
    with gs.Atlas(BUNDLED) as atlas:
        for prompt in json.loads(JUDGED.read_text(encoding="utf-8")):
            found = dict.fromkeys(ORDERS, 0)
            for order in ORDERS:
                tokens = gs.look(model, sae, prompt["text"], k=FIRST, order=order, atlas=atlas).tokens
                for judged in prompt["tokens"]:
                    token = tokens[judged["position"]]
                    assert token.token == judged["token"], (token, judged)
                    first = [one.feature for one in token.features]
                    found[order] += len(set(first) & set(judged["telling"]))
                    totals[order][1] += sum(atlas[feature].density > DENSE for feature in first)
                    unknown |= {
                        (f"{prompt['kind']}, {token.token!r}", feature): sheet(atlas[feature])
                        for feature in set(first) - set(judged["telling"]) - set(judged["not"])
                    }
                totals[order][0] += found[order]
            print(
                f"{prompt['kind']:<18}{''.join(f'{found[order]:>12}' for order in ORDERS)}   {FIRST * len(prompt['tokens'])}"
            )
    for name, place in (("all", 0), (f"on > {DENSE:.0%} of tokens", 1)):
        print(f"{name:<18}{''.join(f'{totals[order][place]:>12}' for order in ORDERS)}   200")
    for (where, feature), text in unknown.items():
        print(f"not judged: {feature} on {where}" + (f"\n{text}" if "--sheet" in sys.argv else ""))


def sheet(page: gs.Dashboard) -> str:
    """A label and five examples: three of the strongest, two of the middle of the range."""
    middle = [one for one in page.examples if one.interval is not None]
    lines = [f"  {page.label or 'no label'} (fires on {page.density:.2%})"]
    for one in [*page.strongest[:8:3], *middle[len(middle) // 2 :][:2]]:
        before, after = "".join(one.tokens[max(0, one.peak - 5) : one.peak]), "".join(one.tokens[one.peak + 1 :][:1])
        lines.append(f"    {readable(f'{before}[{one.tokens[one.peak]}]{after}')}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
