"""Relatives made up for tests: of atlases whose SAEs are nowhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from atlases import planted_atlas
from gemscope.atlas.describe.relatives import add_relatives
from gemscope.atlas.files.manifest import read_manifest, write_manifest
from gemscope.features.relatives import About, Bounds, Kin, Lives, Measured, Party, Relation, Text

SITES = ("0.res", "1.res", "2.res")


def chain(folder: Path, *, features: int = 40, labelled: int = 3) -> list[Path]:
    """Atlases of three SAEs, one behind the other, that know each other's features."""
    folders = []
    for at, site in enumerate(SITES):
        place = folder / site
        planted_atlas(place, features=features, source_id=f"{at}-res-tiny", seed=at, labelled=labelled).close()
        manifest = read_manifest(place)
        write_manifest(replace(manifest, sae=f"tiny/{site}", sae_digest=f"{at}" * 64, site=site, site_out=site), place)
        folders.append(place)
    add_relatives(folders, made_up(folders))
    return folders


def parties(folders: list[Path]) -> list[Party]:
    return [
        Party(name=one.sae, digest=one.sae_digest, site=one.site, site_out=one.site_out, d_sae=one.d_sae)
        for one in map(read_manifest, folders)
    ]


def made_up(folders: list[Path]) -> tuple[Kin, ...]:
    """Feature i goes on as i + 1 where i is even, and raises i + 2 and lowers i + 3."""
    manifest, names = read_manifest(folders[0]), parties(folders)
    found = []
    for at, own in enumerate(names):
        relations = tuple(relation(own, names[to], later=to > at) for to in (at - 1, at + 1) if 0 <= to < len(names))
        even = np.arange(own.d_sae) % 2 == 0
        born = np.where(even, 0, at).astype(np.int32)
        gone = np.where(even, len(names) - 1, at).astype(np.int32)
        lives = Lives(chain=tuple(names), own=at, born=born, gone=gone)
        found.append(Kin(model=manifest.model, revision=manifest.revision, own=own, relations=relations, lives=lives))
    return tuple(found)


def relation(own: Party, other: Party, *, later: bool, effect: bool = True) -> Relation:
    about = About(
        other=other,
        later=later,
        text=Text(
            corpus="<b>sample</b>",
            corpus_digest="0" * 64,
            tokens=12_345,
            length=128,
            dropped={"first": 7},
            dtype="float32",
        ),
        bounds=Bounds(cosine=0.4, correlation=0.2, effect=0.1 if effect else None),
        effect=Measured(site=own.site, until=other.site, tokens=160, agreement=0.9, digest="0") if effect else None,
        why="" if effect else "the model does not read what is written <there>",
    )
    entries = [
        ((feature + by) % other.d_sae, cosine, correlation, both, value)
        for feature in range(own.d_sae)
        for by, cosine, correlation, both, value in (
            (1, 0.9, 0.8 if feature % 2 == 0 else 0.1, 200, 1.25),
            (2, 0.3, 0.05, 12, 0.5),
            (3, -0.25, -0.001, 0, -0.75),
        )
    ]
    ids, cosine, correlation, both, value = zip(*entries, strict=True)
    return Relation(
        about=about,
        starts=np.arange(own.d_sae + 1, dtype=np.int64) * 3,
        ids=np.array(ids, np.int32),
        cosine=np.array(cosine, np.float32),
        correlation=np.array(correlation, np.float32),
        both=np.array(both, np.int32),
        effect=np.array(value, np.float32) * effect,
    )


def renamed(folder: Path, digest: str) -> None:
    """As if the atlas were another SAE's."""
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sae_digest": digest}))
