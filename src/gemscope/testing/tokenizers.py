"""Tokenizers of a few hundred tokens that have the rules of a family's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


_MERGES = ("t h", "th e", "i n", "a n", "an d", "e r", "o u", "in g")

_BLANK = "▁"


def byte_level(*special: str) -> Tokenizer:
    """GPT-2's rules (and SmolLM2's, Qwen's, Pythia's): bytes, a blank belongs to the word after it, no BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(*_vocabulary(pieces, "Ġ")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def sentence_piece(*special: str, bos: str, dummy_blank: bool) -> Tokenizer:
    """Gemma's and Mistral's rules: `▁` for blanks, unknown characters as bytes, BOS in front. Mistral puts a blank
    before the first word, and takes it off again when decoding.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    letters = [_BLANK, *map(chr, range(33, 127))]
    vocabulary, merges = _vocabulary(
        [*special, *(f"<0x{byte:02X}>" for byte in range(128, 256)), "\n", *letters], _BLANK
    )
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    blank = normalizers.Replace(" ", _BLANK)
    undo = [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if dummy_blank:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_BLANK), blank])
        tokenizer.decoder = decoders.Sequence([*undo, decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.normalizer, tokenizer.decoder = blank, decoders.Sequence(undo)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
    )
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def _vocabulary(pieces: list[str], blank: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Pieces by id, the merges' results after them. A word may carry its blank: `Ġ the`."""
    merges = [(left, right) for left, right in (merge.split() for merge in (*_MERGES, f"{blank} the", f"{blank} and"))]
    pieces = [*pieces, *(left + right for left, right in merges)]
    return {piece: index for index, piece in enumerate(pieces)}, merges
