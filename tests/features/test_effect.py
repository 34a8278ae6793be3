"""What writing at a site does to the logits: against torch's own Jacobians, small steps in the running model, and planted
paths.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gemscope as gs
from anatomy import NEWER
from by_hand import MAIN, TEXT, blockwise, kinds_of, model_of, output_by_hand, random_sae
from gemscope.activations.model import LanguageModel
from gemscope.disk import claimed
from gemscope.edits.steer import Steer
from gemscope.errors import AccessError, CorruptFile, FileError, InputError, Mismatch, NotFound, SiteNotFound
from gemscope.features.effect import Effect, effect
from gemscope.testing import tiny_model
from gemscope.text.corpus import Corpus

TEXTS = ["the sun and the moon in the air", "a light in the sea and on"]
CORPUS = Corpus.of(
    [
        "the sun and the moon in the air, a light in the sea and on the land of the other morning",
        "the thing and the end",
    ]
)


@cache
def measured(family: str = "llama", site: str = "1.res") -> Effect:
    return effect(model_of(family), site, CORPUS, tokens=48, length=12)


def final(family: str, model: LanguageModel) -> nn.Module:
    path = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm", "gpt_neox_sequential":
            "gpt_neox.final_layer_norm", "gemma3": "model.language_model.norm"}  # fmt: skip
    return model.hf.get_submodule(path.get(family, "model.norm"))


# --- the truth ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", "gemma3", "bloom", "falcon_sequential", "opt", "qwen2_moe", *NEWER]
)
def test_it_is_torch_s_jacobian_with_this_position_and_later_ones_apart(family: str) -> None:
    exact = family in ("gpt2", "opt")  # the others compute norms, or attention, in float32
    model = tiny_model(family, dtype=torch.float64 if exact else torch.float32)
    place = {"gpt2": "transformer.h", "bloom": "transformer.h", "falcon_sequential": "transformer.h",
             "opt": "model.decoder.layers", "gemma3": "model.language_model.layers"}.get(family, "model.layers")  # fmt: skip
    this = later = torch.zeros((), dtype=torch.float64)
    n = 0
    for text in TEXTS:
        tokens = model.tokens(text)
        hidden = partial(_hidden, model, model.hf.get_submodule(f"{place}.1"), tokens.ids)
        length = tokens.ids.shape[1]
        whole = torch.autograd.functional.jacobian(
            hidden, torch.zeros(length, model.d_model, dtype=model.dtype)
        ).double()
        special = torch.isin(tokens.ids[0], torch.tensor(sorted(model.special_ids)))
        counted = [at for at in range(1, length) if not special[at]]
        n += len(counted)
        this = this + sum(whole[t, :, t] for t in counted)
        later = later + sum(whole[t, :, s] for t in counted for s in counted if s < t)
    found = model.jacobian(TEXTS, "1.res")  # both at once, the shorter one padded
    close = {"rtol": 0, "atol": (1e-10 if exact else 1e-4) * this.abs().max().item()}
    assert found.n == n
    torch.testing.assert_close(found.this, this, **close)
    torch.testing.assert_close(found.later, later, **close)
    assert found.later.norm() > 0.05 * found.this.norm()


@pytest.mark.parametrize("family", MAIN)
def test_behind_each_site_of_the_last_block_it_is_the_rest_of_that_block_by_hand(family: str) -> None:
    model, layer = model_of(family), 2
    clean = blockwise(model, layer, TEXT)
    counted = model.capture(TEXT, ["0.res"])["0.res"].counted[0]
    for kind in kinds_of(family):
        if kind == "mid" and family == "gpt_neox":
            continue

        def hidden(row: Tensor, kind: str = kind) -> Tensor:
            """Of all counted tokens: each answers to itself alone."""
            new = clean[kind].clone()
            new[0, counted] = row
            return final(family, model)(output_by_hand(model, layer, clean, kind, new))[0, counted].sum(0)

        by_hand = torch.autograd.functional.jacobian(hidden, clean[kind][0, counted]).sum(1).double()
        found = model.jacobian(TEXT, f"{layer}.{kind}")
        scale = by_hand.abs().max().item()
        torch.testing.assert_close(found.this, by_hand, rtol=0, atol=1e-4 * scale)
        assert found.later.abs().max() < 1e-4 * scale  # nothing reads what is written there but its own position


@pytest.mark.parametrize("family", MAIN)
def test_it_says_what_a_small_push_does_to_the_logits_at_every_kind_of_site(family: str) -> None:
    model = model_of(family)
    for kind in kinds_of(family):
        site = f"0.{kind}"
        whole = measured(family, site)
        direction = torch.randn(model.width(site), generator=torch.Generator().manual_seed(1))
        direction /= direction.norm()
        pushed, n = {}, 0
        for by in (0.02, -0.02):
            total = torch.zeros(model.vocab, dtype=torch.float64)
            n = 0
            for packed in model.rows(CORPUS, length=12, batch=4):
                rows = packed.first(4, 12)
                counted = model.capture(rows, [site])[site].counted
                with model.edited(Steer.along(site, direction, by)):
                    logits = model.logits(rows)[counted].double()
                cap = getattr(model.hf.config.get_text_config(), "final_logit_softcapping", None)
                total += (cap * (logits / cap).atanh() if cap else logits).sum(0)
                n += int(counted.sum())
                break
            pushed[by] = total / n
        assert n == whole.of.tokens
        change = (pushed[0.02] - pushed[-0.02]) / 0.04
        predicted = whole.logits(model, direction[None])[0].double()
        known = torch.tensor(sorted(set(model.tokenizer.get_vocab().values())))
        change = change[known[known < model.vocab]]
        change -= change.mean()
        assert torch.corrcoef(torch.stack([change, predicted]))[0, 1] > 0.999
        torch.testing.assert_close(predicted, change, rtol=0, atol=0.03 * change.abs().max().item())


@pytest.mark.parametrize("family", [*MAIN, "falcon_sequential", "opt", "qwen2_moe", *NEWER])
def test_some_directions_alone_forward_are_what_the_whole_backward_says_of_them(family: str) -> None:
    model = model_of(family)
    for kind in kinds_of(family) if family in MAIN else ("res", "mlp"):
        site = f"1.{kind}"
        some = torch.randn(5, model.width(site), generator=torch.Generator().manual_seed(2))
        whole = model.jacobian(TEXTS, site)
        (few,) = model.jacobians(TEXTS, site, 1, directions=some)
        assert (few.n, few.dropped) == (whole.n, whole.dropped)
        for part in ("this", "later"):
            wanted = getattr(whole, part) @ some.double().T
            torch.testing.assert_close(getattr(few, part), wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


def test_rows_belong_to_several_sums_in_turn() -> None:
    model = model_of("llama")
    tokens = model.tokens([*TEXTS, "the sun", "on the land"])
    found = model.jacobians(tokens, "1.res", 3)
    for part, own in enumerate(found):
        alone = model.jacobian(tokens.every(3, part), "1.res")
        assert (own.n, own.dropped) == (alone.n, alone.dropped)
        torch.testing.assert_close(own.this, alone.this, atol=1e-5, rtol=0)
        torch.testing.assert_close(own.later, alone.later, atol=1e-5, rtol=0)
    none = model.jacobians(tokens, "1.res", 5)[4]
    assert none.n == 0
    assert not none.this.any()


def test_where_nothing_but_the_unembedding_follows_it_is_the_unembedding() -> None:
    model = tiny_model("llama")
    model.hf.model.norm = nn.Identity()
    found = effect(model, "2.res", CORPUS, tokens=48, length=12)
    torch.testing.assert_close(found.jacobian(), torch.eye(32), atol=1e-6, rtol=0)
    assert found.later.abs().max() < 1e-6
    sae = random_sae(model, "2.res")
    for one in found.promoted(model, sae, [3, 7], k=6):
        rises = model.hf.lm_head.weight.double()[: len(model.tokenizer)] @ sae.direction(one.feature).double()
        assert list(one.promoted) == rises.topk(6).indices.tolist()
        assert one.promoted_values == pytest.approx((rises.topk(6).values - rises.mean()).tolist(), rel=1e-4)
        assert list(one.suppressed) == (-rises).topk(6).indices.tolist()
        assert one.agreement == pytest.approx(1)


def test_a_planted_word_is_promoted_and_suppressed_by_opposite_directions() -> None:
    model = tiny_model("gpt2")
    sae = random_sae(model, "1.res")
    row = 40
    found = effect(model, "1.res", CORPUS, tokens=48, length=12)
    W_U = model.hf.lm_head.weight.double()
    # The direction that raises one token most of all, of all directions of its length.
    direction = ((W_U[row] - W_U.mean(0)) @ found.jacobian().double()).float()
    with torch.no_grad():
        sae.W_dec[5], sae.W_dec[6] = direction, -direction
    up, down = found.promoted(model, sae, [5, 6], k=4)
    assert up.promoted[0] == row == down.suppressed[0]
    assert up.promoted == down.suppressed
    assert up.promoted_values == pytest.approx([-value for value in down.suppressed_values])
    assert up.promoted_tokens == tuple(model.strings(up.promoted))


def _hidden(model: LanguageModel, block: nn.Module, ids: Tensor, added: Tensor) -> Tensor:
    """What the unembedding reads of one row, with something added behind a block: transformers and torch alone."""
    seen: list[Tensor] = []

    def add(_: nn.Module, __: object, out: object) -> object:
        return (out[0] + added, *out[1:]) if isinstance(out, tuple) else out + added

    handles = [
        block.register_forward_hook(add),
        model.hf.lm_head.register_forward_pre_hook(lambda _, given: seen.append(given[0])),
    ]
    try:
        model.hf(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen[-1][0]


# --- the text -------------------------------------------------------------------------------------------------------


def test_sinks_special_tokens_first_positions_and_padding_are_in_no_mean() -> None:
    model = tiny_model("llama", seed=1)
    (sink,) = model.tokenizer("x")["input_ids"]
    model.hf.model.embed_tokens.weight[sink] *= 1e4
    end = model.tokenizer.eos_token
    found = model.jacobian([f"the sun x and{end}the sea", "a light"], "0.res")
    tokens = model.tokens([f"the sun x and{end}the sea", "a light"])
    real, special = tokens.real, torch.isin(tokens.ids, torch.tensor(sorted(model.special_ids)))
    assert found.dropped == {
        "padding": int((~real).sum()),
        "first": 2,
        "special": int((special & real)[:, 1:].sum()),
        "sink": int((tokens.ids == sink).sum()),
    }
    assert min(found.dropped.values()) > 0
    assert found.n == tokens.ids.numel() - sum(found.dropped.values())


def test_halves_are_rows_in_turn_whatever_the_batch_and_the_whole_is_their_mean() -> None:
    model = model_of("llama")
    packed = next(model.rows(CORPUS, length=12, batch=4))
    at_once = effect(model, "1.res", CORPUS, tokens=48, length=12, batch=8)
    in_pairs = effect(model, "1.res", CORPUS, tokens=48, length=12, batch=2)
    assert at_once.of == in_pairs.of
    torch.testing.assert_close(at_once.this, in_pairs.this)
    torch.testing.assert_close(at_once.later, in_pairs.later)
    for half in (0, 1):
        sums = [model.jacobian(packed.ids[row], "1.res") for row in (half, half + 2)]
        n = sum(one.n for one in sums)
        assert at_once.of.halves[half] == n
        torch.testing.assert_close(at_once.this[half], (sum(one.this for one in sums) / n).float(), atol=1e-5, rtol=0)
    whole = model.jacobian(packed, "1.res")
    torch.testing.assert_close(at_once.jacobian("this"), (whole.this / whole.n).float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(at_once.jacobian("later"), (whole.later / whole.n).float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(at_once.jacobian(), ((whole.this + whole.later) / whole.n).float(), atol=1e-5, rtol=0)


def test_halves_of_one_text_agree_wholly_and_those_of_other_texts_less() -> None:
    model = model_of("llama")
    words = "the sun and the moon in th"
    length = len(model.ids(words)) + 1  # with the BOS of each row
    same = effect(model, "1.res", Corpus.of([words]).take(1), tokens=1, length=length // 2)
    assert same.agreement < 0.999
    repeated = gs.Effect(of=same.of, this=same.this[[0, 0]], later=same.later[[0, 0]])
    assert repeated.agreement == pytest.approx(1)
    (one,) = repeated.promoted(model, random_sae(model), [2])
    (other,) = same.promoted(model, random_sae(model), [2])
    assert one.agreement == pytest.approx(1)
    assert other.agreement < 0.9999


def test_parts_add_up_to_the_whole() -> None:
    model, found = model_of("llama"), measured()
    directions = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    parts = [found.logits(model, directions, part=part) for part in ("this", "later")]
    torch.testing.assert_close(sum(parts), found.logits(model, directions), atol=1e-4, rtol=0)
    assert found.logits(model, directions).mean(-1).abs().max() < 1e-5


# --- files ----------------------------------------------------------------------------------------------------------


def test_it_is_read_as_it_was_saved(tmp_path: Path) -> None:
    found = measured()
    path = found.save(tmp_path / "15.effect")
    again = Effect.load(path)
    assert again.of == found.of
    assert torch.equal(again.this, found.this)
    assert torch.equal(again.later, found.later)
    assert [file.name for file in tmp_path.iterdir()] == ["15.effect"]
    found.save(path)  # in place of what was there


def test_a_file_that_says_nothing_of_rows_asked_for_is_read(tmp_path: Path) -> None:
    found = measured()
    silent = Effect(of=replace(found.of, rows=0), this=found.this, later=found.later)
    path = silent.save(tmp_path / "older")
    assert b"rows" not in path.read_bytes()
    assert Effect.load(path).of == silent.of


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    path = measured().save(tmp_path / "effect")
    sound = path.read_bytes()
    flipped = bytearray(sound)
    flipped[-5] ^= 1
    newer = sound.replace(b'\\"format\\": 1', b'\\"format\\": 9')
    fewer = sound.replace(b'\\"length\\": 12', b'\\"length\\": -2')
    elsewhere = sound.replace(b'\\"1.res\\"', b'\\"one.r\\"')
    other = sound.replace(b"gemscope_effect", b"gemscope_affect")
    assert len({sound, newer, fewer, elsewhere[: len(sound)], other}) == 5
    for data in (sound[:-9], bytes(flipped), newer, fewer, elsewhere, other, b"", b"\x80\x04pickled"):
        path.write_bytes(data)
        with pytest.raises(CorruptFile) as raised:
            Effect.load(path)
        assert "\n" not in str(raised.value)
    with pytest.raises(NotFound):
        Effect.load(tmp_path / "nowhere")
    with pytest.raises(FileError):
        measured().save(tmp_path)


# --- stopped and gone on ------------------------------------------------------------------------------------------


class Stopped(Exception):
    """As a signal that ends the process would be."""


def stops(*_: object) -> None:
    raise Stopped


def test_measuring_that_was_stopped_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    how = {"tokens": 48, "length": 12, "batch": 2}
    at_once = effect(model, "1.res", CORPUS, **how)
    wanted = at_once.save(tmp_path / "at-once").read_bytes()
    path, real, read = tmp_path / "kept", LanguageModel.jacobians, []

    def dies_within(self: LanguageModel, *given: object, **options: object) -> object:
        if len(read) == 1:
            raise Stopped
        read.append(given[0])
        return real(self, *given, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "jacobians", dies_within)
        with pytest.raises(Stopped):
            effect(model, "1.res", CORPUS, **how, to=path)
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["at-once", "kept.partial"]
    with pytest.raises(InputError, match=r"kept\.partial holds an unfinished effect measured with another site: go on"):
        effect(model, "2.res", CORPUS, **how, to=path)
    with pytest.raises(InputError, match="another rows, batch"):
        effect(model, "1.res", CORPUS, tokens=72, length=12, batch=4, to=path)

    def counted(self: LanguageModel, *given: object, **options: object) -> object:
        read.append(given[0])
        return real(self, *given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(LanguageModel, "jacobians", counted)
    found = effect(model, "1.res", CORPUS, **how, to=path)
    assert len(read) == 2  # the first batch was not read again
    assert found.of == at_once.of
    assert path.read_bytes() == wanted
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["at-once", "kept"]
    again = effect(model, "1.res", CORPUS, **how, to=path)
    assert len(read) == 2
    assert torch.equal(again.this, found.this)
    with pytest.raises(InputError, match="holds an effect of another site: name another file"):
        effect(model, "2.res", CORPUS, **how, to=path)
    with pytest.raises(InputError, match="another rows"):
        effect(model, "1.res", CORPUS, tokens=24, length=12, to=path)


def test_damaged_sums_are_one_line_and_not_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = model_of("llama"), tmp_path / "kept"
    how = {"tokens": 48, "length": 12, "batch": 2, "to": path}
    with monkeypatch.context() as patch:
        patch.setattr(Effect, "save", stops)
        with pytest.raises(Stopped):
            effect(model, "1.res", CORPUS, **how)
    partial = tmp_path / "kept.partial"
    sound = partial.read_bytes()
    flipped = bytearray(sound)
    flipped[-5] ^= 1
    other = sound.replace(b"gemscope_unfinished", b"gemscope_unfinishe_")
    fewer = sound.replace(b'\\"rows\\": 4', b'\\"rows\\": 2')
    assert len({sound, bytes(flipped), other, fewer}) == 4
    for data in (bytes(flipped), other, fewer, sound[:-9], b"", b"\x80\x04pickled"):
        partial.write_bytes(data)
        with pytest.raises(CorruptFile, match=r"kept\.partial.* is .*: remove it to begin anew$") as raised:
            effect(model, "1.res", CORPUS, **how)
        assert "\n" not in str(raised.value)
    partial.write_bytes(sound)
    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "jacobians", None)  # all rows were read
        effect(model, "1.res", CORPUS, **how)
    assert not partial.exists()


def test_two_do_not_measure_one_file(tmp_path: Path) -> None:
    with claimed(tmp_path / "kept.partial"), pytest.raises(AccessError, match="being written by another process"):
        effect(model_of("llama"), "1.res", CORPUS, tokens=24, length=12, to=tmp_path / "kept")


# --- some directions alone ------------------------------------------------------------------------------------------


def test_an_effect_along_some_directions_says_of_them_what_the_whole_one_says() -> None:
    model, whole = model_of("llama"), measured()
    some = torch.randn(3, 32, generator=torch.Generator().manual_seed(4))
    few = effect(model, "1.res", CORPUS, tokens=48, length=12, directions=some)
    assert few.of == whole.of
    for part in ("all", "this", "later"):
        wanted = whole.logits(model, some, part=part)
        torch.testing.assert_close(few.logits(model, some, part=part), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(few.logits(model, some[[2, 0, 2]]), whole.logits(model, some[[2, 0, 2]]))
    assert "along 3 directions alone" in str(few)


def test_an_effect_along_some_directions_is_taken_for_no_other(tmp_path: Path) -> None:
    model = model_of("llama")
    few = effect(model, "1.res", CORPUS, tokens=24, length=12, directions=torch.eye(32)[:2])
    with pytest.raises(Mismatch, match="of other directions alone"):
        few.logits(model, torch.eye(32)[1:3])
    with pytest.raises(Mismatch, match="7 numbers given"):
        few.logits(model, torch.zeros(2, 7))
    with pytest.raises(InputError, match="some directions alone"):
        few.save(tmp_path / "few")
    with pytest.raises(InputError, match="some directions alone"):
        Effect.over([few, few])
    with pytest.raises(InputError, match="is not kept"):
        effect(model, "1.res", CORPUS, directions=torch.eye(32)[:2], to=tmp_path / "few")
    assert not list(tmp_path.iterdir())


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
def test_a_mistake_is_one_clear_line() -> None:
    model, found = model_of("llama"), measured()
    sae = random_sae(model, "1.res")
    with pytest.raises(SiteNotFound, match="no layer 9"):
        effect(model, "9.res", CORPUS)
    with pytest.raises(InputError, match="computed on the side"):
        effect(model, "1.transcoder_nogain", CORPUS)
    with pytest.raises(InputError, match="computed on the side"):
        effect(model, "embed", CORPUS)
    with pytest.raises(InputError, match="expected some in each of two halves"):
        effect(model, "1.res", Corpus.of(["the sun"]), tokens=20)
    with pytest.raises(InputError, match="tokens=0"):
        effect(model, "1.res", CORPUS, tokens=0)
    with pytest.raises(Mismatch, match=r"writes at 0\.res, this effect is that of 1\.res"):
        found.promoted(model, random_sae(model, "0.res"), [1])
    with pytest.raises(Mismatch, match="of tiny-llama, not of tiny-gpt2"):
        found.promoted(model_of("gpt2"), sae, [1])
    with pytest.raises(Mismatch, match="7 numbers given"):
        found.logits(model, torch.zeros(2, 7))
    with pytest.raises(InputError, match="4800"):
        found.promoted(model, sae, [4800])
    with pytest.raises(InputError, match="no features"):
        found.promoted(model, sae, [])
    with pytest.raises(InputError, match="k=0"):
        found.promoted(model, sae, [1], k=0)
    with pytest.raises(InputError, match="part='now'"):
        found.jacobian("now")  # type: ignore[arg-type]
    with pytest.raises(Mismatch, match="7 numbers given"):
        model.jacobians(TEXT, "1.res", 1, directions=torch.zeros(2, 7))
    with pytest.raises(InputError, match="forward mode does not get through this model"):
        tiny_model("bloom").jacobians(TEXT, "1.res", 1, directions=torch.ones(2, 32))
    with (
        model.edited(Steer.along("1.res", torch.ones(32), 1.0)),
        pytest.raises(InputError, match="while edits are in force"),
    ):
        model.jacobian(TEXT, "1.res")


def test_it_leaves_no_trace() -> None:
    model = tiny_model("llama")
    before = model.logits(TEXT)
    effect(model, "1.res", CORPUS, tokens=24, length=12)
    assert torch.equal(model.logits(TEXT), before)
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.hf.modules())
    assert not any(weight.requires_grad for weight in model.hf.parameters())


def test_it_says_what_it_is_in_a_line_and_in_json() -> None:
    found = measured()
    facts = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert facts["tokens"] == found.of.tokens == sum(facts["halves"])
    assert facts["agreement"] == found.agreement
    assert f"{found.of.tokens} tokens" in str(found)
    assert "4 first" in str(found)
