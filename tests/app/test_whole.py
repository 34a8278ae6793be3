"""A whole model on pages: the grid, a search over all labels, and a text through all layers."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from atlases import HOSTILE_LABEL, change_json, planted_atlas
from gemscope.activations.site import Site
from gemscope.atlas.reader import Atlas
from gemscope.features.sae import SAE
from gemscope.features.scope_manifest import Made, Manifest, Text, write_scope
from gemscope.reports.looks import look_through
from gemscope.testing import planted_sae
from html_tree import parse
from served import MODEL, TEXT, reader

SITES = ("0.res", "1.res", "2.res", "1.mlp")
SAES: dict[str, SAE] = {site: planted_sae(site=site, seed=seed).sae for seed, site in enumerate(SITES)}


def find(manifest: Any) -> tuple[Any, Any]:
    return MODEL, SAES[manifest.site]


def place(root: Path, site: str) -> Path:
    layer, kind = site.split(".")
    return root / kind / f"layer_{layer}" / "width_64" / "average_l0_4"


@pytest.fixture(scope="module")
def scope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SAEs of four sites, each with its atlas; one has no score."""
    root = tmp_path_factory.mktemp("scope")
    for number, site in enumerate(SITES):
        sae, folder = SAES[site], place(root, site)
        source = site.replace(".", "-")
        planted_atlas(folder / "atlas", features=sae.d_sae, seed=number, source_id=f"{source}-64").close()
        change_json(folder / "atlas", site=site, site_out=site, sae_digest=sae.digest)
        score = {"digest": sae.digest, "l0": 4.0 + number, "fvu": 0.1 * (number + 1), "dead": 0.25, "corpus": "sample"}
        if site != "2.res":
            (folder / "score.json").write_text(json.dumps(score))
    return root


@pytest.fixture(scope="module")
def live(scope: Path) -> Iterator[TestClient]:
    with reader(scope, models=find) as client:
        yield client


@pytest.fixture(scope="module")
def still(scope: Path) -> Iterator[TestClient]:
    with reader(scope) as client:
        yield client


# --- the grid ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["/", "/tiny-model"])
def test_the_start_page_of_several_sites_shows_them_by_layer_and_kind(still: TestClient, address: str) -> None:
    table = parse(still.get(address).text).one("table", class_="grid")
    assert [head.text for head in table.one("thead").all("th")] == ["layer", "mlp", "res"]
    rows = {row.one("th").text: [box.text for box in row.all("td")] for row in table.one("tbody").all("tr")}
    assert rows == {"0": ["", "0.100"], "1": ["0.400", "0.200"], "2": ["", "—"]}
    assert [one.attributes["href"] for one in table.all("a")] == [
        "/tiny-model/0-res-64",
        "/tiny-model/1-mlp-64",
        "/tiny-model/1-res-64",
        "/tiny-model/2-res-64",
    ]
    legend = parse(still.get(address).text).one(class_="scale").text
    assert "0.1" in legend
    assert "0.4" in legend


def test_another_figure_can_be_chosen_and_all_are_data(still: TestClient) -> None:
    page = parse(still.get("/tiny-model?by=l0").text)
    assert "4.0" in [box.text for box in page.one("table", class_="grid").all("td")]
    found = still.get("/tiny-model.json").json()["grids"]["tiny-model"]
    assert found["layers"] == [0, 1, 2]
    assert [one["fvu"] for one in found["saes"]] == [0.1, 0.4, 0.2, None]
    assert found["pareto"] == {"fvu": [0]}
    assert still.get("/tiny-model?by=beauty").status_code == 400


def test_a_site_with_several_saes_lists_them(scope: Path, tmp_path: Path) -> None:
    for l0 in (9, 30):
        other = tmp_path / "res" / "layer_1" / "width_64" / f"average_l0_{l0}"
        planted_atlas(other / "atlas", features=64, source_id="1-res-64").close()
        change_json(other / "atlas", sae_digest=str(l0))
        (other / "score.json").write_text(json.dumps({"digest": str(l0), "l0": l0, "fvu": 1 / l0, "dead": 0}))
    with reader(scope, tmp_path) as client:
        page = parse(client.get("/").text)
        (several,) = page.one("table", class_="grid").all("a", class_="of")
        assert several.text == "of 3"
        site = parse(client.get(several.attributes["href"]).text).one("div", id="site")
        assert [row.one("a").text for row in site.one("tbody").all("tr")] == [
            "tiny-model/1-res-64",
            "tiny-model/1-res-64__l0-9",
            "tiny-model/1-res-64__l0-30",
        ]
        assert site.text.count("●") == 4  # and the one in the caption
        assert len(site.all("svg")) == 1


def test_a_score_of_other_weights_or_a_damaged_one_is_not_shown(tmp_path: Path) -> None:
    for number, content in enumerate(('{"digest": "other", "l0": 3, "dead": 0, "fvu": 0.5}', "{")):
        folder = tmp_path / f"{number}" / "atlas"
        planted_atlas(folder, source_id=f"{number}-res").close()
        change_json(folder, site=f"{number}.res", site_out=f"{number}.res")
        (folder.parent / "score.json").write_text(content)
    with reader(tmp_path) as client:
        assert [one["fvu"] for one in client.get("/.json").json()["grids"]["tiny-model"]["saes"]] == [None, None]


def test_atlases_of_one_site_make_no_grid(tmp_path: Path) -> None:
    for name in ("a", "b"):
        planted_atlas(tmp_path / name, source_id=f"{name}-res").close()
    with reader(tmp_path) as client:
        assert client.get("/.json").json()["grids"] == {}
        assert not parse(client.get("/").text).all("table", class_="grid")


# --- a search over all labels -----------------------------------------------------------------------------------------


def test_a_search_finds_labels_of_all_sites(still: TestClient, scope: Path) -> None:
    page = parse(still.get("/search?text=words").text)
    expected = 0
    for site in SITES:
        with Atlas(place(scope, site) / "atlas") as atlas:
            expected += atlas.count(text="words")
    found = still.get("/search.json?text=words&limit=200").json()
    assert found["total"] == expected == len(found["features"])
    assert {one["site"] for one in found["features"]} == set(SITES)
    assert len(page.one(class_="hits").one("tbody").all("tr")) == 50
    href = page.one(class_="hits").one("tbody").all("a")[0].attributes["href"]
    assert still.get(href).status_code == 200
    assert page.one("a", rel="next").attributes["href"] == "/search?text=words&offset=50"
    counted = page.one(class_="counted").all("a")
    assert sorted(one.text.split()[0] for one in counted) == sorted(SITES)
    assert still.get("/search?text=words&model=nothing").status_code == 404
    assert "No label says that" in still.get("/search?text=nosuchword").text
    assert still.get("/search").status_code == 200


def test_hostile_labels_are_escaped_there(still: TestClient) -> None:
    page = still.get("/search?text=alert").text
    assert "&lt;script&gt;alert" in page
    assert HOSTILE_LABEL not in page
    assert "<script>alert" not in still.get("/search", params={"text": "<script>alert(1)</script>"}).text


# --- a text through all layers ----------------------------------------------------------------------------------------


def test_a_text_is_read_at_every_layer_in_one_pass(live: TestClient, scope: Path) -> None:
    found = live.post("/tiny-model/prompt.json", json={"text": TEXT, "kind": "res"}).json()
    saes = {Site.parse(site): SAES[site] for site in SITES if site.endswith("res")}
    folders = {site: place(scope, str(site)) / "atlas" for site in saes}
    expected = look_through(MODEL, saes, TEXT, k=3, atlases=folders, foremost=1).to_dict()
    assert {name: found[name] for name in expected} == json.loads(json.dumps(expected))
    assert found["sources"] == ["0-res-64", "1-res-64", "2-res-64"]
    other = live.post("/tiny-model/prompt.json", json={"text": TEXT, "kind": "mlp"}).json()
    assert [one["site"] for one in other["sites"]] == ["1.mlp"]


def test_its_page_has_a_row_for_each_layer_and_a_column_for_each_token(live: TestClient) -> None:
    page = parse(live.get("/tiny-model/prompt", params={"text": TEXT}).text)
    table = page.one("table", class_="layers")
    rows = table.one("tbody").all("tr")
    assert [row.one("th").one("a").attributes["href"] for row in rows] == [
        f"/tiny-model/{layer}-res-64" for layer in range(3)
    ]
    tokens = live.get("/tiny-model/prompt.json", params={"text": TEXT}).json()["tokens"]
    assert len(table.one("thead").all("button")) == len(tokens)
    assert {len(row.all("td")) for row in rows} == {len(tokens)}
    for link in (one.attributes["href"] for one in rows[0].all("td")[1].all("a")):
        assert live.get(link).status_code == 200


def test_a_token_is_seen_through_all_layers_and_a_feature_is_pinned(live: TestClient) -> None:
    asked = {"text": TEXT, "kind": "res", "at": 2}
    one = parse(live.get("/tiny-model/prompt", params=asked).text).one("section", class_="token-through")
    pins = [button.attributes["value"] for button in one.all("button")]
    assert pins
    assert {pin.rpartition("/")[0] for pin in pins} <= {"0-res-64", "1-res-64", "2-res-64"}
    page = parse(live.get("/tiny-model/prompt", params={**asked, "pin": pins[0]}).text)
    assert page.one("section", class_="pinned").all("token-strip")
    values = live.get("/tiny-model/prompt.json", params={**asked, "pin": pins[0]}).json()["values"]
    source, _, feature = pins[0].rpartition("/")
    site = source.replace("-64", "").replace("-", ".")
    acts = MODEL.capture(TEXT, [site])[site]
    whole = SAES[site].encode(acts, features=[int(feature)]).of(int(feature))[0].tolist()
    assert values == [value if counts else 0.0 for value, counts in zip(whole, acts.counted[0].tolist(), strict=True)]


@pytest.mark.parametrize("pin", ["nothing", "0-res-64/9999", "no-such/3", "0-res-64/x"])
def test_what_is_no_feature_here_cannot_be_pinned(live: TestClient, pin: str) -> None:
    answer = live.get("/tiny-model/prompt", params={"text": TEXT, "kind": "res", "pin": pin})
    assert answer.status_code == 400


def test_a_long_text_goes_through_page_by_page_and_a_very_long_one_is_refused(
    live: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "the cat and the sun " * 6
    page = parse(live.get("/tiny-model/prompt", params={"text": text, "kind": "res"}).text)
    assert len(page.one("table", class_="layers").one("thead").all("th")) == 41
    later = parse(live.get("/tiny-model/prompt", params={"text": text, "kind": "res", "start": 40}).text)
    assert later.one("table", class_="layers").one("thead").all("button")[0].attributes["value"] == "40"
    monkeypatch.setattr("gemscope.app.layers.TOKENS", 10)
    answer = live.get("/tiny-model/prompt.json", params={"text": text})
    assert answer.status_code == 400
    assert "up to 10 are read" in answer.json()["error"]


def test_a_link_to_it_sets_no_model_to_work(live: TestClient) -> None:
    elsewhere = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    page = live.get("/tiny-model/prompt", params={"text": TEXT}, headers=elsewhere)
    assert "Press Look" in page.text
    assert TEXT in page.text
    assert not parse(page.text).all("table", class_="layers")


def test_a_posted_text_gets_an_address_that_can_be_shared(live: TestClient) -> None:
    posted = live.post("/tiny-model/prompt", data={"text": TEXT, "pin": ""}, follow_redirects=False)
    assert posted.status_code == 303
    assert posted.headers["location"] == "/tiny-model/prompt?text=the+cat+and+the+sun"
    part = live.post("/tiny-model/prompt", data={"text": TEXT}, headers={"hx-request": "true"})
    assert part.headers["hx-push-url"] == "/tiny-model/prompt?text=the+cat+and+the+sun"
    assert "<html" not in part.text


def test_without_a_model_it_says_why(still: TestClient) -> None:
    page = still.get("/tiny-model/prompt", params={"text": TEXT})
    assert "started without a model" in page.text
    assert still.get("/tiny-model/prompt.json", params={"text": TEXT}).json()["error"]
    assert still.get("/nothing/prompt").status_code == 404


def test_a_hostile_text_stays_a_text(live: TestClient) -> None:
    text = "</textarea><script>alert(1)</script>"
    page = live.get("/tiny-model/prompt", params={"text": text, "at": 3}).text
    assert "<script>alert" not in page
    assert "</textarea><" not in page


def test_an_sae_with_a_score_and_no_atlas_is_in_the_grid_of_its_scope(scope: Path, tmp_path: Path) -> None:
    """With its figures, on unlike text too; its cell leads nowhere."""
    root = tmp_path / "scope"
    shutil.copytree(scope, root)
    bare, unscored = place(root, "0.mlp"), place(root, "0.att")
    for folder in (bare, unscored):
        folder.mkdir(parents=True)
    unlike = {"l0": 6.0, "fvu": 0.5, "dead": 0.0, "delta_loss": 0.25}
    (bare / "score.json").write_text(json.dumps({"l0": 5.0, "fvu": 0.05, "dead": 0.0, "unlike": unlike}))
    with Atlas(place(root, "1.res") / "atlas") as atlas:
        name = atlas.manifest.model
    paths = {site: place(root, site).relative_to(root).as_posix() for site in (*SITES, "0.mlp", "0.att")}
    saes = tuple(Made(path=path, site=site, site_out=site, width=64, l0=4.0) for site, path in paths.items())
    text = Text(name="planted", digest="0")
    write_scope(Manifest(model=name, revision=None, corpus=text, versions={}, recipe="", saes=saes), root)
    with reader(root) as client:
        table = parse(client.get("/").text).one("table", class_="grid")
        rows = {row.one("th").text: [box.text for box in row.all("td")] for row in table.one("tbody").all("tr")}
        assert rows == {"0": ["0.050", "0.100"], "1": ["0.400", "0.200"], "2": ["", "—"]}
        assert "0-mlp" not in " ".join(one.attributes["href"] or "" for one in table.all("a"))
        other = parse(client.get("/tiny-model?by=unlike_fvu").text).one("table", class_="grid")
        assert [box.text for box in other.all("td")][:2] == ["0.500", "—"]
        below = client.get("/tiny-model?site=0.mlp").text
        assert paths["0.mlp"] in parse(below).one(id="site").text
        told = client.get("/", headers={"accept": "application/json"}).json()["grids"]["tiny-model"]["saes"]
        assert [one["unlike_delta_loss"] for one in told if one["site"] == "0.mlp"] == [0.25]
        assert len(told) == 5
    (root / "scope.json").write_text("no scope at all")
    with reader(root) as client:
        assert client.get("/").status_code == 200
