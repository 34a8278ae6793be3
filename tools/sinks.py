"""How well attention sinks are told: at every layer, what is left out and what stays, on real text.

    python tools/sinks.py smollm2                     # or a folder, a Hub id, a GGUF file
    python tools/sinks.py MODEL --tokens 100000 --length 12

Figures are those of transformers' own hidden states and attention. A token counts as seen at a layer where its norm is
above three medians of its row there: sinks should be, from where they arise to where they fade, and others should not.
"""

import argparse
from collections import Counter

import torch

import gemscope as gs
from gemscope.cli.bars import bars


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--corpus", nargs="*", help="files of text (the bundled sample unless said)")
    parser.add_argument("--tokens", type=int, default=12_000)
    parser.add_argument("--length", type=int, default=256, help="tokens per row")
    parser.add_argument("--attention", action="store_true", help="how much attention each kind of token draws, too")
    args = parser.parse_args()
    model = gs.load_model(args.model, dtype="float32", attn_implementation="eager" if args.attention else None)
    corpus = gs.Corpus.read(args.corpus) if args.corpus else gs.Corpus.sample()
    print(f"{model.name}, rows of {args.length} tokens of {corpus.name}")
    layers = range(model.n_layers - 1)  # transformers gives the last block's output behind the final norm
    seen = {kind: torch.zeros(len(layers)) for kind in ("sink", "ordinary")}
    highest, lowest, share = (
        torch.zeros(len(layers)),
        torch.full((len(layers),), float("inf")),
        torch.zeros(len(layers)),
    )
    drawn = {kind: torch.zeros(model.n_layers) for kind in ("first", "sink", "ordinary")}
    counts: Counter[str] = Counter()
    what: Counter[str] = Counter()
    with bars() as progress, progress("read", args.tokens, "tokens") as advance, torch.no_grad():
        for rows in model.rows(corpus, length=args.length, batch=max(1, 1024 // args.length)):
            if rows.padded:
                break
            ordinary = model.capture(rows, ["embed"])["embed"].counted
            sink = rows.counted & ~ordinary
            first = torch.zeros_like(sink)
            first[:, 0] = True
            kinds = {"first": first, "sink": sink, "ordinary": ordinary}
            out = model.hf(input_ids=rows.ids, output_hidden_states=True, output_attentions=args.attention)
            for layer in layers:
                values = out.hidden_states[layer + 1]
                norms = values.norm(dim=-1)
                ratio = norms / norms.masked_fill(~rows.counted, torch.nan).nanmedian(-1, keepdim=True).values
                for kind, found in seen.items():
                    found[layer] += (ratio[kinds[kind]] > 3).sum()
                highest[layer] = max(highest[layer], ratio[ordinary].max())
                if sink.any():
                    lowest[layer] = min(lowest[layer], ratio[sink].min())
                spread = (values[ordinary] - values[ordinary].mean(0)).square().sum(-1)
                share[layer] = max(share[layer], spread.max() / spread.sum())
            if args.attention:
                behind = torch.ones(args.length, args.length).tril(-1)  # [query, key]
                for layer, weights in enumerate(out.attentions):
                    given = (weights.mean(1) * behind).sum(1) / behind.sum(0).clamp(min=1)  # [B, key]
                    for kind, mask in kinds.items():
                        drawn[kind][layer] += given[mask].sum()
            counts.update({kind: int(mask.sum()) for kind, mask in kinds.items()})
            what.update(model.strings(rows.ids[sink].tolist()))
            advance(rows.ids.numel())
            if counts["ordinary"] + counts["sink"] >= args.tokens:
                break
    print(f"{counts['ordinary']:,} ordinary tokens, {counts['sink']:,} sinks: {what.most_common(12)}\n")
    head = (
        "| behind block | sinks above 3 × | lowest | ordinary above 3 × | highest | one token's share of the variance |"
    )
    print(head + (" attention: first, sink, ordinary |" if args.attention else ""))
    print("| --- " * (7 if args.attention else 6) + "|")
    for layer in layers:
        low = f"{lowest[layer]:.1f}" if counts["sink"] else "–"
        line = (
            f"| {layer} | {seen['sink'][layer] / max(1, counts['sink']):.0%} | {low} | "
            f"{seen['ordinary'][layer] / counts['ordinary']:.3%} | {highest[layer]:.2f} | {share[layer]:.1%} |"
        )
        if args.attention:
            parts = (f"{drawn[kind][layer] / max(1, counts[kind]):.3f}" for kind in drawn)
            line += f" {', '.join(parts)} |"
        print(line)


if __name__ == "__main__":
    main()
