"""What an edit costs while text is generated: tokens per second of the bundled model, clean and under edits, and the
same edit through SAELens and TransformerLens, in turns in one process. README.md says what the rows mean. Logits
that do not agree end it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import measure
import torch
from torch import Tensor

import gemscope as gs
from gemscope.activations.bundled import smollm2_folder
from gemscope.activations.editing import Edit

PROMPT = "Once upon a time there was a girl who lived with her grandmother at the edge of a great forest, and every day"
BUNDLED = measure.REPOSITORY / "src" / "gemscope" / "data" / "smollm2-15-res"
FEATURE, TO = 8029, 60.0
BAR = 0.10
"""How much of the clean speed one Clamp may cost."""
CLEAN = {"gemscope": "clean", "hf": "hf clean", "saelens": "saelens clean"}
SMOKE = {"rounds": 1, "tokens": 3, "batches": (2,), "peer": False, "threads": 1}
Task = Callable[[], Any]


def main() -> None:
    """Measures, checks, prints."""
    args = _arguments()
    torch.set_grad_enabled(False)
    if args.threads:
        torch.set_num_threads(args.threads)
    result = measure.surroundings(("gemscope", "torch", "transformers", "sae-lens", "transformer-lens")) | {
        "rounds": args.rounds,
        "tokens": args.tokens,
        "bar": BAR,
    }
    ours, theirs = Ours(), Theirs() if args.peer else None
    result |= {"model": ours.model.name, "dtype": str(ours.model.dtype), "checked": _checked(ours, theirs)}
    result["rows"] = [row for batch in args.batches for row in _measured(ours, theirs, batch, args)]
    if args.save:
        measure.progress(f"wrote {measure.save('edits', result)}")
    print(json.dumps(result, indent=1)) if args.json else _print(result)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="rounds that count, after one that warms up (default 9)")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of a row (default 64)")
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 8), metavar="ROWS")
    parser.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="without SAELens and TransformerLens")
    parser.add_argument("--smoke", action="store_true", help="small, without SAELens: are the results right?")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/edits.json too")
    args = parser.parse_args()
    if args.smoke:
        args.__dict__.update(SMOKE)
    return args


# --- the implementations --------------------------------------------------------------------------------------------


class Ours:
    """gemscope's loop and transformers' own, clean and under edits. No token ends a text: all write as many."""

    def __init__(self) -> None:
        self.model = gs.load_model()
        vars(self.model)["ends"] = frozenset()
        self.sae = gs.load_sae("smollm2")
        early = gs.load_sae("smollm2")  # the same features at another place: what they mean does not matter here
        early.site = early.site_out = gs.Site.parse("8.res")
        clamp = gs.Clamp(self.sae, FEATURE, TO)
        self.edits: Mapping[str, Sequence[Edit]] = {
            "clean": (),
            "clamp": (clamp,),
            "five at two sites": (
                clamp,
                gs.Steer(self.sae, 2341, 30.0),
                gs.Ablate(self.sae, 3252),
                gs.Clamp(early, 4443, 20.0),
                gs.Scale(early, 4540, 2.0),
            ),
            "splice": (gs.Splice(self.sae, error=False),),
            "splice and clamp": (gs.Splice(self.sae, error=False), clamp),
        }
        self.ids = self.model.tokens(PROMPT).ids

    def tasks(self, rows: int, new: int) -> dict[str, Task]:
        ids = self.ids.expand(rows, -1)
        found = {name: partial(self._streamed, ids, new, edits) for name, edits in self.edits.items()}
        return found | {f"hf {name}": partial(self._hf, ids, new, self.edits[name]) for name in ("clean", "clamp")}

    def _streamed(self, ids: Tensor, new: int, edits: Sequence[Edit]) -> Any:
        with self.model.edited(*edits):
            return [step.ids for step in self.model.stream(ids, max_new_tokens=new)]

    def _hf(self, ids: Tensor, new: int, edits: Sequence[Edit]) -> Any:
        with self.model.edited(*edits):
            return self.model.hf.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
            )

    def logits(self, name: str) -> Tensor:
        """Of the prompt's last token, every token edited as theirs edit every token."""
        clamp = gs.Clamp(self.sae, FEATURE, TO, every_token=True)
        with self.model.edited(*([clamp] if name == "clamp" else [])):
            return self.model.logits(self.ids)[0, -1].float()


class Theirs:
    """SAELens on TransformerLens's bridge: the SAE put in with its error term and the feature's activation set, as its
    documentation has it; and the leanest way there is, a plain hook that knows the one feature's weights.
    """

    def __init__(self) -> None:
        from sae_lens import SAE
        from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge

        folder = str(smollm2_folder())
        boot = partial(SAETransformerBridge.boot_transformers, folder, device="cpu", dtype=torch.bfloat16)
        # Two of them: once an SAE was attached and taken off, hooks at its point are no longer called.
        self.plain, self.spliced = boot(), boot()
        self.point = "blocks.15.hook_out"
        self.sae = SAE.load_from_disk(BUNDLED, device="cpu").to(torch.bfloat16)
        column, row = self.sae.W_enc[:, FEATURE].float(), self.sae.W_dec[FEATURE].float()
        bias, threshold = self.sae.b_enc[FEATURE].float(), self.sae.threshold[FEATURE].float()

        def difference(x: Tensor, hook: object) -> Tensor:
            pre = x.float() @ column + bias
            f = pre * (pre > threshold)
            return (x.float() + (TO - f)[..., None] * row).to(x.dtype)

        def setting(f: Tensor, hook: object) -> Tensor:
            f[..., FEATURE] = TO
            return f

        self._difference, self._setting = difference, setting
        self.ids = gs.load_model().tokens(PROMPT).ids

    def tasks(self, rows: int, new: int) -> dict[str, Task]:
        ids = self.ids.expand(rows, -1)
        return {
            "saelens clean": partial(self._generated, self.plain, ids, new),
            "saelens hook": lambda: self._hooked(partial(self._generated, self.plain, ids, new)),
            "saelens clamp": lambda: self._clamped(partial(self._generated, self.spliced, ids, new)),
        }

    @staticmethod
    def _generated(bridge: Any, ids: Tensor, new: int) -> Any:
        return bridge.generate(
            ids, max_new_tokens=new, do_sample=False, stop_at_eos=False, verbose=False, return_type="tokens"
        )

    def _hooked(self, work: Task) -> Any:
        with self.plain.hooks(fwd_hooks=[(self.point, self._difference)]):
            return work()

    def _clamped(self, work: Task) -> Any:
        with self.spliced.saes(saes=[self.sae], use_error_term=True):
            name = self.spliced.get_sae_hook_name(self.sae)
            with self.spliced.hooks(fwd_hooks=[(name, self._setting)]):
                return work()

    def logits(self, name: str) -> Tensor:
        """Of the prompt's last token."""
        work = {
            "clean": lambda: self.plain(self.ids),
            "hook": lambda: self._hooked(lambda: self.plain(self.ids)),
            "clamp": lambda: self._clamped(lambda: self.spliced(self.ids)),
        }[name]
        return work()[0, -1].float()


# --- measuring ------------------------------------------------------------------------------------------------------


def _checked(ours: Ours, theirs: Theirs | None) -> dict[str, float]:
    """How far logits lie apart, as a share of what the edit does to them. Ends the benchmark where that is much."""
    clean, clamped = ours.logits("clean"), ours.logits("clamp")
    effect = (clamped - clean).norm()
    tasks, length = ours.tasks(1, 4), ours.ids.shape[1]
    if torch.cat(tasks["clamp"]()).tolist() != tasks["hf clamp"]()[0, length:].tolist():
        sys.exit("gemscope's loop and transformers' own write different tokens under the same edit")
    if effect < 1:
        sys.exit("the edit changes nothing")
    if theirs is None:
        return {"effect": effect.item()}
    apart = {
        "clean": (theirs.logits("clean") - clean).norm() / effect,
        "hook": (theirs.logits("hook") - clamped).norm() / effect,
        "clamp": (theirs.logits("clamp") - clamped).norm() / effect,
    }
    for name, share in apart.items():
        if share > 0.2:  # another attention kernel in bfloat16, and an SAE in bfloat16 in the last one
            sys.exit(f"SAELens's {name} is another edit: logits differ by {share:.2f} of what the edit does")
    return {"effect": effect.item()} | {name: share.item() for name, share in apart.items()}


def _measured(ours: Ours, theirs: Theirs | None, rows: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    tasks: dict[Hashable, Task] = dict(ours.tasks(rows, args.tokens))
    if theirs is not None:
        tasks |= theirs.tasks(rows, args.tokens)
    found = measure.in_turns(tasks, args.rounds, f"{rows} rows")
    out = []
    for name, readings in found.items():
        side = str(name).split()[0]
        clean = found[CLEAN[side] if side in CLEAN else CLEAN["gemscope"]]
        slower = [one.wall / other.wall - 1 for one, other in zip(readings, clean, strict=True)]
        row = {"rows": rows, "impl": name} | measure.summary(readings)
        row["tokens_per_s"] = rows * args.tokens / row["median_s"]
        row["overhead"] = statistics.median(slower)
        if theirs is not None:
            row["ratio_vs_saelens"] = measure.ratios(readings, found["saelens clamp"])[1]
        out.append(measure.rounded(row))
    return out


# --- printing -------------------------------------------------------------------------------------------------------


def _print(result: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table()
    for title in ("rows", "", "tokens/s", "over clean", "s", "× SAELens's clamp"):
        table.add_column(title, justify="left" if not title else "right")
    for row in result["rows"]:
        against = f"{row['ratio_vs_saelens']:.2f}" if "ratio_vs_saelens" in row else ""
        table.add_row(
            str(row["rows"]), row["impl"], f"{row['tokens_per_s']:.1f}", f"{row['overhead']:+.1%}",
            f"{row['median_s']:.2f}", against,
        )  # fmt: skip
    console.print(table)
    how = f"{result['tokens']} tokens after a prompt, {result['dtype']}; medians of {result['rounds']} rounds in turns"
    for line in measure.remarks(result, how):
        console.print(line, style="dim", highlight=False)


if __name__ == "__main__":
    main()
