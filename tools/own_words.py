"""Everyday prose and conversation that no permissive corpus in reach has: the bundled model writes it itself.

    python tools/own_words.py -o corpora/own-words.jsonl.gz

Openings are drawn from lists of subjects and forms (below); the model continues each at temperature 1 (top-k 100).
Half of them are plain text, half are turns of a chat in the model's own format. One document a line: `text`, `source`
(own-words), `license` (the model's, Apache-2.0). The same seed on the same versions gives the same text.
"""

import argparse
import gzip
import json
import os
import random
import sys
import time
from pathlib import Path

import torch

import gemscope as gs

SUBJECTS = """
a rainy weekend|the bus that never came|my grandmother's kitchen|learning to swim|a lost dog|the new neighbours|a job interview|moving house
a school play|the first snow|a wedding in the village|a broken bicycle|a long train ride|a market in the morning|growing tomatoes|a bad cold
a birthday party|the night sky|time travel and wormholes|black holes|how vaccines work|the history of bread|volcanoes|the French Revolution
a football final|chess|running a marathon|jazz records|learning the guitar|painting a room|a visit to the dentist|buying a used car
a storm at sea|an old lighthouse|a detective in a small town|a spaceship with no captain|a talking cat|two brothers|a stolen letter|a secret garden
saving money|rent in big cities|a town election|a court case|a hospital at night|the price of coffee|a factory closing|a new bridge
climate and the oceans|bees|wolves coming back|recycling|solar panels|electric cars|robots at work|social media and sleep
cooking rice|a chocolate cake|soup for four|breakfast in a hurry|a picnic|fishing|hiking in the Alps|camping with children
a phone that will not charge|a slow laptop|passwords|a lost suitcase|a delayed flight|a hotel complaint|a late parcel|a noisy upstairs flat
friendship|an apology|falling in love|a quarrel at dinner|homesickness|being nervous|forgiving someone|a difficult boss
the Roman army|ancient Egypt|Marie Curie|Napoleon|the moon landing|the Silk Road|Shakespeare|the printing press
Tokyo|Paris in spring|a village in Kenya|New York taxis|the Amazon river|Istanbul|a ranch in Texas|an island in Greece
"""
PLAIN = [
    "Dear diary, today I want to write about {}. ",
    "Dear Anna,\n\nthank you for your letter. You asked about {}. ",
    '"You never told me about {}," she said. ',
    "Once upon a time there was a story about {}. ",
    "Breaking news: residents spoke this morning about {}. ",
    "By our correspondent. The talk of the town is {}: ",
    "Five things nobody tells you about {}:\n\n1. ",
    "Review: I bought the book on {} last week, and ",
    "Transcript\n\nHOST: Welcome back. Today we talk about {}.\nGUEST: Thanks for having me. ",
    "From: Maria\nTo: Tom\nSubject: {}\n\nHi Tom,\n\n",
    "Tom: Hey, did you hear about {}?\nSarah: ",
    "When I was ten years old, everything changed because of {}. ",
    "It was late. He could not stop thinking about {}. ",
    "A short poem about {}:\n\n",
    "How to explain {} to a child: ",
]
CHAT = [
    "Can you tell me about {}?",
    "Write a short story about {}.",
    "I'm having trouble with {}. What should I do?",
    "What do people usually get wrong about {}?",
    "Write a friendly email about {}.",
    "Let's have a conversation about {}. You start.",
    "Summarise what matters about {} in a few sentences.",
    "Write a dialogue between two friends about {}.",
]


def openings(model: gs.LanguageModel, count: int, seed: int) -> list[str]:
    """Prompts, half plain, half chat, in an order of their own."""
    subjects = [subject.strip() for line in SUBJECTS.strip().splitlines() for subject in line.split("|")]
    dice = random.Random(seed)
    out = []
    for index in range(count):
        subject = dice.choice(subjects)
        if index % 2:
            turn = [{"role": "user", "content": dice.choice(CHAT).format(subject)}]
            out.append(model.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
        else:
            out.append(dice.choice(PLAIN).format(subject))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=260_000, help="about how many to write")
    parser.add_argument("--each", type=int, default=256, help="at most, per document")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = gs.load_model("smollm2")
    torch.manual_seed(args.seed)
    model.tokenizer.padding_side = "left"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    aside = args.out.with_name(f".{args.out.name}")
    written, started = 0, time.time()
    prompts = openings(model, args.tokens // args.each * 4, args.seed)
    with aside.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as packed:
        while written < args.tokens and prompts:
            batch, prompts = prompts[: args.batch], prompts[args.batch :]
            inputs = model.tokenizer(batch, return_tensors="pt", padding=True)
            with torch.no_grad():
                out = model.hf.generate(
                    **inputs, max_new_tokens=args.each, do_sample=True, temperature=1.0, top_k=100, pad_token_id=0
                )
            new = out[:, inputs["input_ids"].shape[1] :]
            written += int((new != 0).sum())
            for ids in out:
                # Chat marks stay out of the text: they are the tokenizer's, not words.
                text = model.tokenizer.decode(ids, skip_special_tokens=True).strip()
                line = {"source": "own-words", "license": "Apache-2.0 (written by SmolLM2-135M-Instruct)", "text": text}
                packed.write((json.dumps(line) + "\n").encode())
            rate = written / (time.time() - started)
            print(
                f"{written:,} of {args.tokens:,} tokens, {rate:.0f}/s, {(args.tokens - written) / rate / 60:.0f} min left",
                file=sys.stderr,
            )
    os.replace(aside, args.out)


if __name__ == "__main__":
    main()
