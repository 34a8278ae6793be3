"""What a user would do with each folder: open it, and look at everything in it."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from starlette.requests import Request

import gemscope as gs
from gemscope.activations.store import Store
from gemscope.activations.writer import Writer
from gemscope.app import requests
from gemscope.app.asking import body_of
from gemscope.atlas.files.outputs import Outputs
from gemscope.atlas.labels.asking import _explanation
from gemscope.atlas.labels.journal import journal_of, read_journal
from gemscope.atlas.verify import verify
from gemscope.cli.learn import _settings as chosen
from gemscope.errors import GemscopeError, InputError
from gemscope.features.firings import Firings, keeping
from gemscope.features.jacobian_sums import unfinished
from gemscope.features.relatives import Kin
from gemscope.features.sae import SAE
from gemscope.progress import silent
from gemscope.text.labelled import labelled as texts_with_labels
from gemscope.training.config import TrainConfig
from gemscope.training.lesson import Lesson

from . import samples

Reader = Callable[[Path], None]
READERS: dict[str, Reader] = {}
"""By the sample's name. Each may raise our errors and nothing else."""


def _reads(*names: str) -> Callable[[Reader], Reader]:
    def known(read: Reader) -> Reader:
        READERS.update(dict.fromkeys(names, read))
        return read

    return known


def _used(sae: SAE) -> None:
    x = torch.randn(3, sae.d_in, generator=torch.Generator().manual_seed(0))
    assert sae.decode(sae.encode(x)).shape == (3, sae.d_out)
    assert repr(sae)
    assert repr(sae.info)


@_reads("saelens", "saelens_scaled", "saelens_topk", "saelens_gated", "saelens_5", "gemma_scope_2")
def _folder(folder: Path) -> None:
    _used(gs.load_sae(folder, site="1.res", cache_dir=folder / "cache"))
    _used(gs.load_sae(folder, cache_dir=folder / "cache"))


@cache
def _llama() -> gs.LanguageModel:
    return samples.described()[0]


@_reads(*samples.FOREIGN)
def _foreign(folder: Path) -> None:
    (at,) = {at for name, (_, at) in samples.FOREIGN.items() if name == folder.name}
    raised: list[GemscopeError] = []
    for options in ({"site": "1.res", "model": _llama()}, {}):
        try:
            _used(gs.load_sae(folder / at, cache_dir=folder / "cache", **options))
        except GemscopeError as error:
            raised.append(error)
    if len(raised) == 2:
        raise raised[0]


@_reads("pickles")
def _pickles(folder: Path) -> None:
    raised: list[GemscopeError] = []
    for path in sorted(folder.glob("*.pt*")):
        try:
            _used(gs.load_sae(path, site="1.res", model=_llama()))
        except GemscopeError as error:
            raised.append(error)
    if raised:
        raise raised[0]


@_reads("llama_scope")
def _llama_scope(folder: Path) -> None:
    _used(gs.load_sae(folder))


@_reads("npz", "npz_packed")
def _npz(folder: Path) -> None:
    _used(gs.load_sae(folder / "params.npz", cache_dir=folder / "cache"))


@_reads("crosscoder")
def _crosscoder(folder: Path) -> None:
    found = gs.load_crosscoder(folder)
    assert repr(found)
    x = {site: torch.randn(3, width) for site, width in zip(found.sites, found.widths, strict=True)}
    assert found.decode(found.encode(x))


@_reads("scope", "sparsify_run", "circuit_tracer_set")
def _scope(folder: Path) -> None:
    (inside,) = (name for name in ("mine", "run", "set") if (folder / name).exists())
    scope = gs.load_scope(folder / inside, offline=True, cache_dir=folder / "cache")
    assert str(scope)
    assert repr(scope)
    assert scope.to_dict()
    raised = [GemscopeError(one.reason) for one in scope.failed if one.reason != "not finite"]
    for member in scope:
        assert str(member)
        try:
            _used(scope.open(member))
        except GemscopeError as error:
            raised.append(error)
    if raised:
        raise raised[0]


@_reads("clt", "gemma_scope_2_clt")
def _clt(folder: Path) -> None:
    found = gs.load_clt(folder / "it", offline=True)
    assert repr(found)
    x = {site: torch.randn(3, found.d_in, generator=torch.Generator().manual_seed(0)) for site in found.sites}
    assert found(x)
    assert found.directions(0, 0)


@_reads("recipe")
def _recipe(folder: Path) -> None:
    config = TrainConfig.read(folder / "recipe.toml")
    assert config.steps >= 0
    assert config.lr_at(0) >= 0
    assert config.prefixes is not None


@_reads("store")
def _store(folder: Path) -> None:
    raised: list[GemscopeError] = []
    for skip in (False, True):
        try:
            store = Store(folder / "acts", skip_corrupt=skip)
            assert repr(store)
            for site in store.sites:
                rows = store[site]
                assert len(rows[:]) == len(rows)
                rows.tokens(slice(0, 9)), rows.documents(slice(0, 9)), rows.offsets(slice(0, 9))
            store.verify()
        except GemscopeError as error:
            raised.append(error)
    if raised:
        raise raised[0]


@_reads("harvest")
def _harvest(folder: Path) -> None:
    with Writer(folder / "acts", samples.IDENTITY) as writer:
        for seed in sorted({0, 1, 2} - writer.work.there()):
            with writer.piece(seed) as shards:
                shards.add(*samples.activations(seed))
        writer.finish(samples.manifest({}), pieces=3)


def _goes_on(name: str) -> Reader:
    def read(folder: Path) -> None:
        lesson = Lesson(samples.rows(), {"": samples.CONFIGS[name]}, folder / "run", None, ())
        for _ in lesson.steps(silent):
            pass
        lesson.saes()

    return read


for _name in samples.CONFIGS:
    _reads(_name)(_goes_on(_name))


@_reads("report")
def _report(folder: Path) -> None:
    report = gs.training_report(folder / "run")
    assert str(report)
    assert report.to_dict()
    assert report.off_target is not None
    report.write()


@_reads("corpus")
def _corpus(folder: Path) -> None:
    raised: list[GemscopeError] = []
    for path in [*sorted(folder.iterdir()), folder]:
        try:
            corpus = gs.Corpus.read(path)
            assert corpus.digest
            assert [document.text.encode() for document in corpus]
        except GemscopeError as error:
            raised.append(error)
    if raised:
        raise raised[0]


@_reads("labelled")
def _labelled(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        assert texts_with_labels(path).counts


def _seen(atlas: gs.Atlas) -> None:
    assert str(atlas)
    assert atlas._repr_html_()
    for index in range(len(atlas)):
        page = atlas[index]
        assert str(page)
        assert page._repr_html_()
        atlas.entry(index)
    for order in ("index", "density", "max", "mean", "label"):
        atlas.summaries(order=order, dead=False, text="river", limit=10)
        atlas.summaries(order=order, limit=1000)
    atlas.glances(range(len(atlas)))
    atlas.search("the river")
    for id_, _, _ in atlas.tokens_like("riv") + atlas.tokens_like(""):
        atlas.by_token(id_)
    for token in (0, 20, 30, 10**6):
        atlas.by_token(token)
    atlas.scatter(), atlas.special, atlas.text([0, 1, -1, 10**6]), atlas.explanations(), atlas.row(0)
    for number, _ in enumerate(atlas.documents()):
        atlas.document(number)


@_reads("atlas")
def _atlas(folder: Path) -> None:
    raised: list[GemscopeError] = []
    at = folder / "a.atlas"
    looks: list[Callable[[gs.Atlas], object]] = [
        _seen,
        lambda atlas: atlas.forget(0, atlas.explain(0, "what it stands for").id),
        lambda atlas: gs.export(atlas, folder / "b.csv", format="csv"),
        lambda atlas: gs.export(atlas, folder / "b.anthropic", format="anthropic"),
    ]
    for look in looks:
        try:
            with gs.Atlas(at) as atlas:
                look(atlas)
        except GemscopeError as error:
            raised.append(error)
    try:
        for problem in verify(at):
            raised.append(GemscopeError(problem))
    except GemscopeError as error:
        raised.append(error)
    if raised:
        raise raised[0]


@_reads("asking")
def _asking(folder: Path) -> None:
    with journal_of(folder / "a", samples.MANIFEST) as journal:
        for answers in journal.answers.values():
            for one in answers.values():
                assert repr(_explanation(one))
        assert journal.plan is None or journal.plan.features is not None
        journal.end()
    assert read_journal(folder / "a", samples.MANIFEST).plan is None


@_reads("describing")
def _describing(folder: Path) -> None:
    model, sae = samples.described()
    texts = gs.Corpus.of([f"{text} {number}" for number in range(6) for text in samples.TEXTS])
    with gs.describe(model, sae, texts, to=folder / "a.atlas", config=samples.DESCRIBE, piece=400) as atlas:
        assert not (found := verify(atlas.folder)), found


@_reads("merging")
def _merging(folder: Path) -> None:
    with gs.merge([folder / "0.atlas", folder / "1.atlas"], to=folder / "both.atlas") as atlas:
        _seen(atlas)


def _imports(format: str, place: str, **options: str) -> Reader:
    def read(folder: Path) -> None:
        with gs.import_atlas(format, folder / place, folder / "in.atlas", **options) as atlas:
            assert not (found := verify(atlas.folder)), found
            _seen(atlas)

    return read


_reads("neuronpedia")(_imports("neuronpedia", "neuronpedia"))
_reads("anthropic")(_imports("anthropic", "anthropic"))
_reads("packed")(_imports("anthropic", "anthropic"))
_reads("dashboard")(_imports("neuronpedia", "."))
_reads("examples")(_imports("gemma-scope-2", "examples.safetensors", sae="some/where/params"))


@_reads("model")
def _model(folder: Path) -> None:
    model = gs.load_model(folder)
    model.logits("the river")
    assert repr(model)


@_reads("gguf")
def _gguf(folder: Path) -> None:
    path = folder / "tiny.gguf"
    gs.load_model(path if path.exists() else folder).logits("the river")


@_reads("request")
def _request(folder: Path) -> None:
    raised: list[InputError] = []
    for path in sorted(folder.glob("*.json")):
        if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
            try:
                asyncio.run(body_of(_posted(path.read_bytes()), getattr(requests, path.stem)))
            except InputError as error:
                raised.append(error)
    if raised:
        raise raised[0]


def _posted(body: bytes) -> Request:
    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-type", b"application/json")]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)


@_reads("settings")
def _settings(folder: Path) -> None:
    path = folder / "settings.toml"
    if not path.is_file():
        return
    raised: list[InputError] = []
    for line in path.read_bytes()[: 1 << 20].decode(errors="surrogateescape").splitlines():
        try:
            for config in chosen(argparse.Namespace(set=[line], sweep=[]), None).values():
                assert config.steps >= 0
        except InputError as error:
            raised.append(error)
    if raised:
        raise raised[0]


@_reads("effect")
def _effect(folder: Path) -> None:
    read = gs.Effect.load(folder / "effect.safetensors")
    assert str(read)
    assert read.to_dict()


@_reads("measuring")
def _measuring(folder: Path) -> None:
    with unfinished(folder / "effect", samples.MEASURING) as kept:
        sums = kept.resumed((samples.D, samples.D))
    if all(sums.counts):
        assert sums.mean("this").shape == (2, samples.D, samples.D)


@_reads("outputs")
def _outputs(folder: Path) -> None:
    read = Outputs(folder, lambda: samples.MANIFEST, str)
    for feature in read.features:
        found = read.of(feature)
        assert found is not None
        assert found.to_dict()["verdict"]
        assert str(found)


@_reads("relatives")
def _relatives(folder: Path) -> None:
    read = Kin.load(folder / "relatives.safetensors")
    for relation in read.relations:
        relation.nearest()
        for feature in range(read.own.d_sae):
            assert len(relation.of(feature)) >= 0
    if read.lives is not None:
        assert all(read.lives.of(feature) for feature in range(read.own.d_sae))


@_reads("firings")
def _firings(folder: Path) -> None:
    with keeping(folder / "kept", samples.READING) as kept:
        pieces = list(kept.pieces([40]))
    for piece in pieces:
        fired = Firings(40, piece["sizes.0"], piece["ids.0"], piece["values.0"])
        if fired.tokens:
            assert fired.beside(fired, range(40))[0].shape == (40, 40)


assert set(READERS) >= set(samples.SAMPLES), set(samples.SAMPLES) - set(READERS)
