"""What all tests share: shapes are checked while they run, torch keeps to one thread, and the Hub is left alone; and the
bundled model, loaded once for each process of tests in the number format that is fast where they run.
"""

from __future__ import annotations

import functools
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

import typecheck

if TYPE_CHECKING:
    from gemscope.activations.model import LanguageModel
    from s3_server import S3

gc.disable()  # until everything is imported: it would look through all of it, again and again
os.environ["OMP_NUM_THREADS"] = "1"  # read by torch when it is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
typecheck.install()
# Machines are slow, or busy: neither what a test does nor how its examples are drawn is timed.
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module, and with it the Hub's client, is imported."""
    if config.option.markexpr != "hub":
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Servers of tests are noted here, not where the shell of whoever runs them would find them.
    os.environ["XDG_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="gemscope-tests-")
    config.add_cleanup(lambda: shutil.rmtree(os.environ["XDG_RUNTIME_DIR"], ignore_errors=True))
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        # Read when Triton is imported, which other libraries do as well: where nobody asks for the GPU, its programs are
        # interpreted.
        os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes whole processes comes first, so that no worker is at it when the others have nothing left to do."""
    items.sort(key=lambda item: not {"whole", "training"} & set(item.path.parts))


def pytest_collection_finish() -> None:
    """What is imported by now stays: nobody looks for garbage in it any more, which was a fifth of the time."""
    if "torch" in sys.modules:
        import pretended

        pretended.register()
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def own_data(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a user makes with gemscope is not touched by tests."""
    os.environ["GEMSCOPE_DATA"] = str(tmp_path_factory.mktemp("data"))


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Types as users meet them: in the tests alone beartype stands before our own checks."""
    with typecheck.unchecked():
        yield


@pytest.fixture
def s3(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """A small S3 on loopback, where s3:// leads while the test runs, with a cache of its own."""
    from s3_server import s3_server

    with s3_server() as server:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("GEMSCOPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield server


@pytest.fixture(scope="session")
def bundled_model() -> LanguageModel:
    """The bundled model, in the number format that is quick here: what a test says of it holds in both. Nobody changes
    it: edits leave no trace.
    """
    from gemscope.activations.load import load_model

    return load_model("smollm2")


@pytest.fixture(scope="session")
def median_norms() -> dict[tuple[str, str], Any]:
    """Of sites of the bundled model, by atlas: each command would read text for one."""
    return {}


@pytest.fixture
def at_hand(
    bundled_model: LanguageModel, median_norms: dict[tuple[str, str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks for the bundled model without any option, the shell or a page's code, gets `bundled_model`."""
    import gemscope
    from gemscope.activations import load
    from gemscope.atlas import units

    real, measured = load.load_model, units._median_norm

    def median(atlas: Any, model: LanguageModel, sae: Any, read: Any) -> Any:
        if model is not bundled_model:
            return measured(atlas, model, sae, read)
        key = str(atlas.folder), str(sae.site_out or sae.site)
        if key not in median_norms:
            median_norms[key] = measured(atlas, model, sae, read)
        return median_norms[key]

    monkeypatch.setattr(units, "_TOKENS", 1)  # one row of the atlas's text is enough for a norm
    monkeypatch.setattr(units, "_median_norm", median)

    @functools.wraps(real)
    def loaded(name: str = "smollm2", **options: Any) -> LanguageModel:
        plain = all(value in (None, "auto") for option, value in options.items() if option != "progress")
        return bundled_model if name == "smollm2" and plain else real(name, **options)

    monkeypatch.setattr(load, "load_model", loaded)
    monkeypatch.setattr(gemscope, "load_model", loaded)  # a name that may have been looked up before


@pytest.fixture
def little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled corpus is its first three texts, 300 characters of each; what is written is five tokens long; and maps
    are by two axes, where t-SNE of the bundled SAE takes forty seconds.
    """
    from gemscope.activations.model import LanguageModel
    from gemscope.features import map as maps
    from gemscope.text.corpus import Corpus

    monkeypatch.setattr(maps, "FEW", 1 << 30)
    few = Corpus.of([document.text[:300] for document in Corpus.sample().take(3)])
    monkeypatch.setattr(Corpus, "sample", lambda: few)
    generate = LanguageModel.generate

    def shortly(model: LanguageModel, text: Any, **options: Any) -> Any:
        return generate(model, text, **options | {"max_new_tokens": 5})

    monkeypatch.setattr(LanguageModel, "generate", shortly)
