"""Everyday prose and conversation that no permissive corpus in reach has: the bundled model writes it itself.

    python tools/own_words.py -o corpora/own-words.jsonl.gz
    python tools/own_words.py -o corpora/own-subjects.jsonl.gz --broad     # of more subjects, in more forms

Openings are drawn from lists of subjects and forms (below); the model continues each at temperature 1 (top-k 100).
Half of them are plain text, half are turns of a chat in the model's own format. One document a line: `text`, `source`
(own-words, or own-subjects), `license` (the model's, Apache-2.0). The same seed on the same versions gives the same
text, batch by batch: a run that was cut off goes on behind the last whole batch when it is started again.
"""

import argparse
import gzip
import json
import os
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

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
MORE_SUBJECTS = """
the tides|earthquakes|the human heart|how birds migrate|bacteria and viruses|the periodic table|gravity|light and colour|dinosaurs|photosynthesis
the immune system|rust and acids|the seasons|comets|electric motors|probability|prime numbers|maps and distances|the weather forecast|coral reefs
the Mongol empire|the Black Death|the Industrial Revolution|the Inca|Vikings|the Renaissance|medieval monks|the Suez canal|the first railways|Cleopatra
Buddhism|the book of Job|the Psalms|a pilgrimage|a funeral|fasting|what happiness is|free will|honesty|whether animals think
a contract for a flat|inheritance|a traffic fine|the rights of a witness|a divorce|copyright|an insurance claim|school rules|a trade union|taxes
a hurricane on the coast|a bank robbery|a museum opening|the price of oil|a rugby match|a new vaccine|a train accident|a famous actor|a flood in the valley|a missing hiker
knitting a scarf|pruning roses|baking sourdough|fixing a tap|sharpening knives|sewing a button|changing a tyre|cleaning windows|making jam|training a puppy
pancakes|a curry with lentils|roast chicken|lemonade|dumplings|a salad for summer|vegetable stew|fried fish|apple pie|strong tea
headaches|a broken arm|learning to sleep|losing weight|a new baby|growing old|a nosebleed|allergies|stretching|a blood test
Beethoven|learning to dance|photography|an old film|Greek tragedy|a painting of the sea|street musicians|writing a novel|fonts and letters|pottery
a dragon and a miller|a ghost on the stairs|a murder on the ferry|two rivals in love|a colony on Mars|a lost kingdom|a clever fox|a knight who was afraid|a duel|a shipwreck
a meeting about the budget|asking for a rise|a letter of complaint|an invitation|a resignation|a letter of recommendation|a thank-you note|a schedule for Monday|minutes of a club|a warranty
basketball|cycling|cricket|tennis|poker|sailing|climbing|swimming races|the Olympic games|a card trick
Australia|Brazil|Egypt|India|China|Iceland|the Sahara|the Pacific islands|London fog|Mexico City
banks and loans|starting a shop|advertising|the stock market|farmers and rain|fishing villages|a coal mine|hotels in winter|lorry drivers|an airport
a spelling test|homework|a shy pupil|learning French|exams|a science fair|reading aloud|a school trip|a strict teacher|counting to ten
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
MORE_PLAIN = [
    "{}\n\nFrom an encyclopedia. The term refers to ",
    "The morning paper, page two. On {}: police and officials said on Tuesday that ",
    "SYDNEY, Monday. New facts about {} were made public when ",
    "Opinion. People are wrong about {}, and here is why. ",
    "Chapter 4: {}\n\nIn the last chapter we saw that ",
    "A sermon on {}.\n\nBrothers and sisters, ",
    "On {}. An essay.\n\nIt has often been said that ",
    "ACT II, SCENE 1\n\n(Two friends speak of {}.)\n\nMARTHA. ",
    "Posted by nightowl on the forum: does anybody know anything about {}?\n\nRe: ",
    "> What do you think about {}?\n\nWell, I disagree with you there, because ",
    "Question: What should I know about {}?\nAnswer: ",
    "Q. Tell the court what you remember of {}.\nA. ",
    "Ladies and gentlemen, thank you for coming. Tonight I want to speak about {}. ",
    "Recipe and notes: {}\n\nIngredients:\n- ",
    "How to begin with {}, step by step.\n\nStep 1. ",
    "In a small house at the edge of the wood there lived a girl who wondered about {}. ",
    "He had worked all his life with {}. He died last week at the age of ",
    "Minutes of the meeting. Item 3: {}. The chair asked ",
    "The law on {} is as follows. Section 1. ",
    "My dear brother,\n\nI have little time to write, but about {} I must tell you that ",
    "Film review. The story is about {}, and the best thing about it is ",
    "The study looked at {}. Participants were ",
    "\u201cWhy {}?\u201d asked the old man. \u201cBecause,\u201d said the boy, \u201c",
    "Travel notes. We arrived late, and all we had heard was of {}. ",
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
MORE_CHAT = [
    "Explain {} to me as if I were twelve.",
    "What is the history of {}?",
    "I disagree with my friend about {}. Which arguments are there on both sides?",
    "Give me a list of ten facts about {}.",
    "Write a news report about {}.",
    "Write a letter to my aunt about {}.",
    "What are the advantages and the disadvantages of {}?",
    "Tell me a joke about {}.",
    "Who was the first to write about {}?",
    "Compare {} with something similar.",
    "Give me advice about {}, step by step.",
    "Write a scene of a play about {}.",
    "I feel sad because of {}.",
    "Quiz me about {}.",
]


def openings(model: gs.LanguageModel, count: int, seed: int, *, broad: bool = False) -> list[str]:
    """Prompts, half plain, half chat, in an order of their own."""
    listed = SUBJECTS + MORE_SUBJECTS if broad else SUBJECTS
    plain, chat = (PLAIN + MORE_PLAIN, CHAT + MORE_CHAT) if broad else (PLAIN, CHAT)
    subjects = [subject.strip() for line in listed.split("\n") if line for subject in line.split("|")]
    dice = random.Random(seed)
    out = []
    for index in range(count):
        subject = dice.choice(subjects)
        if index % 2:
            turn = [{"role": "user", "content": dice.choice(chat).format(subject)}]
            out.append(model.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
        else:
            out.append(dice.choice(plain).format(subject))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=260_000, help="about how many to write")
    parser.add_argument("--each", type=int, default=256, help="at most, per document")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--broad", action="store_true", help="more subjects and forms: the source own-subjects")
    args = parser.parse_args()
    model = gs.load_model("smollm2")
    model.tokenizer.padding_side = "left"
    prompts = openings(model, args.tokens // args.each * 4, args.seed, broad=args.broad)
    source = "own-subjects" if args.broad else "own-words"
    parts = args.out.with_name(f"{args.out.name}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    written = fresh = 0
    started = time.time()
    for number, first in enumerate(range(0, len(prompts), args.batch)):
        if written >= args.tokens:
            break
        part = parts / f"{number:05d}.json"
        if not part.exists():
            torch.manual_seed(args.seed * 100_003 + number)
            made = continued(model, prompts[first : first + args.batch], args.each)
            fresh += made["tokens"]
            aside = part.with_suffix(".partial")
            aside.write_text(json.dumps(made))
            os.replace(aside, part)
            rate = fresh / (time.time() - started)
            left = (args.tokens - written - made["tokens"]) / rate / 60
            print(
                f"{written + made['tokens']:,} of {args.tokens:,} tokens, {rate:.0f}/s, {left:.0f} min left",
                file=sys.stderr,
            )
        written += json.loads(part.read_text())["tokens"]
    aside = args.out.with_name(f".{args.out.name}")
    with aside.open("wb") as raw, gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed:
        for part in sorted(parts.glob("*.json")):
            for text in json.loads(part.read_text())["texts"]:
                # The template's system turn is the same each time.
                words = text.partition("\nuser\n")[2] if args.broad and text.startswith("system\n") else text
                line = {"source": source, "license": "Apache-2.0 (written by SmolLM2-135M-Instruct)", "text": words}
                packed.write((json.dumps(line) + "\n").encode())
    os.replace(aside, args.out)
    shutil.rmtree(parts)


def continued(model: gs.LanguageModel, prompts: list[str], each: int) -> dict[str, Any]:
    """Each prompt with what the model makes of it, and how many tokens are new.

    Chat marks stay out of the text: they are the tokenizer's, not words.
    """
    inputs = model.tokenizer(prompts, return_tensors="pt", padding=True)
    with torch.no_grad():
        out = model.hf.generate(
            **inputs, max_new_tokens=each, do_sample=True, temperature=1.0, top_k=100, pad_token_id=0
        )
    new = out[:, inputs["input_ids"].shape[1] :]
    texts = [model.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in out]
    return {"texts": texts, "tokens": int((new != 0).sum())}


if __name__ == "__main__":
    main()
