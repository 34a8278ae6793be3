"""The shell against a loopback imitation of the Hub: a tiny Gemma 2 and its SAEs by the names of the real ones."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_content import GEMMA, GEMMA_SCOPE, gemma_2, published
from hub_server import GRANTED, HubServer, Repo, child, hub

SAE = f"{GEMMA_SCOPE}/layer_2/width_16k/average_l0_71"


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    stand_in = {"HuggingFaceTB/SmolLM2-135M-Instruct": Repo(gemma_2())}
    with hub(published() | stand_in) as server:
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def test_look_reads_gemma_through_gemma_scope_by_their_real_names_and_again_offline(
    server: HubServer, home: Path
) -> None:
    words = ("-m", "gemscope", "look", GEMMA, SAE, "Would you be able to travel through time?", "--json")
    first = child(*words, env=server.env(home, token=GRANTED))
    assert first.code == 0, first.stderr
    seen = json.loads(first.stdout)
    assert seen["model"] == GEMMA
    assert seen["sae"] == SAE
    assert seen["site"] == "2.res"
    assert seen["tokens"][0]["token"] == "<bos>"
    assert not seen["tokens"][0]["counted"]
    assert all(token["counted"] for token in seen["tokens"][1:])

    server.requests.clear()
    again = child(*words, env=server.env(home, token=GRANTED, offline=True))
    assert again.code == 0, again.stderr
    assert json.loads(again.stdout) == seen
    assert server.requests == []


@pytest.mark.parametrize(
    ("words", "token", "expected"),
    [
        ((GEMMA, SAE, "hi"), None, "google/gemma-2-2b is gated: accept its terms at"),
        ((GEMMA, f"{GEMMA_SCOPE}/layer_20/width_16k/average_l0_70", "hi"), GRANTED, "average_l0_71"),
        (
            (GEMMA, f"{GEMMA_SCOPE}/layer_20/width_16k/average_l0_71", "hi"),
            GRANTED,
            "no layer 20: this model has layers 0 to 3",
        ),
    ],
    ids=["gated without a token", "a near miss", "a layer that the model lacks"],
)
def test_what_cannot_be_had_is_one_line(
    server: HubServer, tmp_path: Path, words: tuple[str, ...], token: str | None, expected: str
) -> None:
    done = child("-m", "gemscope", "look", *words, env=server.env(tmp_path, token=token))
    assert done.code == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert expected in done.stderr


WITHOUT_THE_PACKAGE = """
import warnings
import gemscope as gs
from gemscope.activations import load
from gemscope.errors import MissingDependency

def missing(progress):
    raise MissingDependency("the package is not installed")

load.smollm2_folder = missing
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    model = gs.load_model()
print(json.dumps([model.name, model.origin, [str(one.message) for one in said if one.category is UserWarning]]))
"""


def test_where_the_default_s_package_is_missing_it_comes_from_the_hub_and_says_so(
    server: HubServer, tmp_path: Path
) -> None:
    name, origin, said = child(WITHOUT_THE_PACKAGE, env=server.env(tmp_path)).json()
    assert name == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert origin == "the Hub"
    assert any("taking HuggingFaceTB/SmolLM2-135M-Instruct from the Hub instead" in one for one in said)
