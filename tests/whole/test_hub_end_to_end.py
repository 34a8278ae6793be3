"""The shell against a loopback imitation of the Hub: a tiny Gemma 2 and its SAEs by the names of the real ones."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hub_content import GEMMA, GEMMA_SCOPE, gemma_2, published
from hub_server import GRANTED, HubServer, Repo, child, hub

LOOK = (GEMMA, f"{GEMMA_SCOPE}/layer_2/width_16k/average_l0_71", "Would you be able to travel through time?", "--json")
REFUSED = {
    "a near miss": (
        (GEMMA, f"{GEMMA_SCOPE}/layer_20/width_16k/average_l0_70", "hi"),
        "average_l0_71",
    ),
    "a layer that the model lacks": (
        (GEMMA, f"{GEMMA_SCOPE}/layer_20/width_16k/average_l0_71", "hi"),
        "no layer 20: this model has layers 0 to 3",
    ),
}


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    stand_in = {"HuggingFaceTB/SmolLM2-135M-Instruct": Repo(gemma_2())}
    with hub(published() | stand_in) as server:
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


SESSION = """
import contextlib, io, runpy, sys, warnings
import transformers
import gemscope as gs
from gemscope.activations import load
from gemscope.errors import MissingDependency

def shell(*words):
    # `python -m gemscope look ...`, without another start of the interpreter.
    sys.argv[1:] = ["look", *words]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            runpy.run_module("gemscope", run_name="__main__")
        except SystemExit as end:
            code = end.code
    return [code, out.getvalue(), err.getvalue()]

def without_the_package():
    def missing(progress):
        raise MissingDependency("the package is not installed")

    load.smollm2_folder = missing
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = gs.load_model()
    return [model.name, model.origin, [str(one.message) for one in said if one.category is UserWarning]]
"""


@pytest.fixture(scope="module")
def online(server: HubServer, home: Path) -> dict[str, Any]:
    """All that needs a granted reader, asked in one process: each start of one costs seconds."""
    words = {"look": LOOK} | {name: words for name, (words, _) in REFUSED.items()}
    done = child(
        f"{SESSION}answers = {{name: shell(*words) for name, words in {words!r}.items()}}\n"
        "print(json.dumps({**answers, 'without the package': without_the_package()}))",
        env=server.env(home, token=GRANTED),
    )
    assert done.stderr == ""
    return done.json()


def test_look_reads_gemma_through_gemma_scope_by_their_real_names_and_again_offline(
    server: HubServer, home: Path, online: dict[str, Any]
) -> None:
    code, stdout, stderr = online["look"]
    assert (code, stderr) == (0, "")
    seen = json.loads(stdout)
    assert (seen["model"], seen["sae"]) == LOOK[:2]
    assert seen["site"] == "2.res"
    assert seen["tokens"][0]["token"] == "<bos>"
    assert not seen["tokens"][0]["counted"]
    assert all(token["counted"] for token in seen["tokens"][1:])

    server.requests.clear()
    again = child("-m", "gemscope", "look", *LOOK, env=server.env(home, token=GRANTED, offline=True))
    assert again.code == 0, again.stderr
    assert json.loads(again.stdout) == seen
    assert server.requests == []


def is_one_line(code: int, stdout: str, stderr: str, expected: str) -> bool:
    return (code, stdout, stderr.count("\n")) == (1, "", 1) and expected in stderr


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_had_is_one_line(online: dict[str, Any], name: str) -> None:
    assert is_one_line(*online[name], expected=REFUSED[name][1]), online[name]


def test_what_may_not_be_had_is_one_line(server: HubServer, tmp_path: Path) -> None:
    done = child("-m", "gemscope", "look", *LOOK, env=server.env(tmp_path))
    assert is_one_line(done.code, done.stdout, done.stderr, "google/gemma-2-2b is gated: accept its terms at"), done


def test_where_the_default_s_package_is_missing_it_comes_from_the_hub_and_says_so(online: dict[str, Any]) -> None:
    name, origin, said = online["without the package"]
    assert name == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert origin == "the Hub"
    assert any("taking HuggingFaceTB/SmolLM2-135M-Instruct from the Hub instead" in one for one in said)
