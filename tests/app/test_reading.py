"""Texts of a reader's own, on pages and as data."""

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import gemscope as gs
from atlases import change_json, planted_atlas
from gemscope.activations import hub
from gemscope.app.nearby import Nearby
from gemscope.atlas.reader import Atlas
from gemscope.errors import GemscopeError, HubUnreachable
from gemscope.features.files.saving import save_sae
from gemscope.reports.look import look
from served import AT, MODEL, SAE, TEXT, here, reader, until


def test_a_text_of_one_s_own_is_tried_on_a_feature(live: TestClient) -> None:
    acts = MODEL.capture(TEXT, ["1.res"])["1.res"]
    expected = SAE.encode(acts, features=[5]).of(5)[0].tolist()
    assert max(expected) > 0
    found = live.post(f"{AT}/5/test", json={"text": TEXT})
    assert found.status_code == 200
    assert found.json()["values"] == expected
    assert found.json()["tokens"] == MODEL.strings(acts.tokens.ids[0].tolist())
    assert found.json()["counted"] == acts.counted[0].tolist()
    assert found.headers["x-queue-ahead"] == "0"
    part = live.post(f"{AT}/5/test", data={"text": TEXT}, headers={"hx-request": "true"})
    assert part.status_code == 200
    assert "token-strip" in part.text


def test_the_prompt_page_shows_what_look_sees(live: TestClient, folder: Path) -> None:
    found = live.get(f"{AT}/prompt.json", params={"text": TEXT, "k": 4, "pin": 5}).json()
    expected = json.loads(json.dumps(look(MODEL, SAE, TEXT, k=4, atlas=folder).to_dict()))
    assert {name: found[name] for name in expected} == expected
    assert found["values"] == live.post(f"{AT}/5/test", json={"text": TEXT}).json()["values"]
    shown = {one["feature"] for token in found["tokens"] for one in token["features"]}
    with Atlas(folder) as atlas:
        assert found["labels"] == {str(index): label for index, label in atlas.labels({*shown, 5}).items()}
    assert found["labels"]
    assert live.post(f"{AT}/prompt.json", json={"text": TEXT, "k": 4, "pin": 5}).json() == found


def test_the_features_that_fire_on_a_text_are_found_those_first_that_say_most(live: TestClient, folder: Path) -> None:
    found = live.get(f"{AT}/search.json", params={"text": TEXT, "kind": "text"}).json()
    with Atlas(folder) as atlas:
        seen = look(MODEL, SAE, TEXT, k=SAE.d_sae, atlas=atlas, foremost=len(found["firing"]))
    assert [int(one["index"]) for one in found["firing"]] == [one.feature for one in seen.foremost]
    for one, said in zip(found["firing"], seen.foremost, strict=True):
        counted = [value for value, counts in zip(one["values"], found["counted"], strict=True) if counts]
        assert max(counted) == pytest.approx(said.activation)
    page = live.get(f"{AT}/prompt", params={"text": TEXT})
    first = page.text.split("What stands out")[2]
    assert f">{seen.foremost[0].feature}</a>" in first.split("</li>")[0]


def test_a_model_s_refusal_is_one_line_and_400(live: TestClient) -> None:
    long = "a b c " * 200
    for answer in (
        live.post(f"{AT}/5/test", json={"text": long}),
        live.get(f"{AT}/prompt.json", params={"text": long}),
        live.post("/api/search-all", json={"modelId": "tiny-model", "text": long}),
    ):
        assert answer.status_code == 400
        assert "reads up to 128" in answer.json()["error"]
    page = live.get(f"{AT}/prompt", params={"text": long})
    assert page.status_code == 400
    assert "reads up to 128" in page.text


def test_without_a_model_pages_say_so_and_texts_are_refused(still: TestClient) -> None:
    assert still.get("/health").json()["sources"][0]["live"] == "off"
    assert still.get(f"{AT}/3").status_code == 200
    assert f"{AT}/3/test" not in still.get(f"{AT}/3").text
    assert "without a model" in still.get(f"{AT}/prompt").text
    assert "without a model" in still.get(f"{AT}/search.json?kind=text&text=a").json()["note"]
    answer = still.post(f"{AT}/3/test", json={"text": TEXT})
    assert answer.status_code == 503
    assert "without a model" in answer.json()["error"]


def test_another_sae_than_the_atlas_s_is_refused_with_the_reason(tmp_path: Path) -> None:
    planted_atlas(tmp_path / "other", features=SAE.d_sae).close()
    with reader(tmp_path / "other", models=here) as client:
        state = client.get("/health").json()["sources"][0]
        assert state["live"] == "off"
        assert "this atlas was made with planted (111111111111), not with planted-32-64" in state["why"]
        assert client.post(f"{AT}/3/test", json={"text": TEXT}).status_code == 503


def test_an_imported_atlas_is_read_through_the_sae_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted_atlas(tmp_path / "in", features=SAE.d_sae).close()
    change_json(tmp_path / "in", sae_digest="", sae=SAE.info.name)
    with reader(tmp_path / "in", models=here) as client:
        assert client.get("/health").json()["sources"][0]["live"] == "ready"
        assert client.get(f"{AT}/prompt.json", params={"text": TEXT}).json()["foremost"]
        # Its activations may be in other units: strengths are measured.
        monkeypatch.setattr("gemscope.app.live._MEASURED", 100)
        asked = {"feature": 5, "strength": "2raw", "prompt": TEXT, "tokens": 2, "run": True}
        (run,) = client.get(f"{AT}/steer.json", params=asked).json()["runs"]
        measured = gs.Units.measured(MODEL, SAE, gs.Corpus.sample(), tokens=100)
        assert run["strengths"][0]["of_norm"] == pytest.approx(measured.raw(5, 2).of_norm)


@pytest.mark.parametrize(
    ("error", "why"), [(HubUnreachable("not in\nthe cache"), "not in the cache"), (MemoryError(), "MemoryError")]
)
def test_a_model_that_cannot_be_had_is_a_reason_not_a_failure(folder: Path, error: Exception, why: str) -> None:
    def nowhere(_: Any) -> tuple[Any, Any]:
        raise error

    with reader(folder, models=nowhere) as client:
        assert why in client.get("/health").json()["sources"][0]["why"]
        assert client.get(f"{AT}/3").status_code == 200


def test_pages_are_there_while_the_model_is_loaded_and_texts_wait_for_it(folder: Path) -> None:
    loaded = threading.Event()

    def slowly(_: Any) -> tuple[Any, Any]:
        assert loaded.wait(120)
        return MODEL, SAE

    with reader(folder, models=slowly, wait=False) as client:
        assert client.get(f"{AT}/3").status_code == 200
        health = client.get("/health").json()
        assert health["sources"][0]["live"] == "loading"
        assert health["queue"]["running"]
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(client.post(f"{AT}/3/test", json={"text": TEXT})))
        asking.start()
        until(lambda: client.get("/health").json()["queue"]["waiting"] == 1)
        loaded.set()
        asking.join(120)
        assert answers[0].status_code == 200
        assert answers[0].headers["x-queue-ahead"] == "1"


def test_what_an_atlas_names_is_found_on_this_machine_and_nobody_else_is_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hub, "reach", lambda: pytest.fail("the network was asked"))
    save_sae(SAE, tmp_path / "sae")
    MODEL.hf.save_pretrained(tmp_path / "model")  # type: ignore[operator]
    MODEL.tokenizer.save_pretrained(tmp_path / "model")
    with Atlas(folder) as atlas:
        manifest = replace(atlas.manifest, model=str(tmp_path / "model"), sae=str(tmp_path / "sae"))
    find = Nearby()
    model, sae = find(manifest)
    assert sae.digest == SAE.digest
    assert model.n_layers == MODEL.n_layers
    assert find(manifest)[0] is model
    assert Nearby(MODEL, SAE)(manifest) == (MODEL, SAE)
    for wrong in ({"model": "nobody/nothing"}, {"sae": "nobody/nothing/at/all"}, {"sae": ""}, {"sae": "/no/such/sae"}):
        with pytest.raises(GemscopeError):
            find(replace(manifest, **wrong))  # type: ignore[arg-type]


def test_the_bundled_model_and_sae_are_found_by_the_names_that_an_atlas_of_them_has(folder: Path) -> None:
    with Atlas(folder) as atlas:
        manifest = replace(atlas.manifest, model="HuggingFaceTB/SmolLM2-135M-Instruct", sae="smollm2", site="15.res")
    model, sae = Nearby()(manifest)
    assert model.origin.startswith("the package")
    assert sae.info.name == "smollm2"
