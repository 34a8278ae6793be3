"""The text of the bundled SAE: what is mixed, what is cut, and that what is held out stays out of any training."""

import argparse
import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from gemscope.text.corpus import Corpus
from written_texts import jsonl


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / "default_sae.py"
    spec = importlib.util.spec_from_file_location("default_sae_tool", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def rows(source: str, count: int, size: int) -> list[dict[str, str]]:
    return [{"source": source, "text": f"{source} {number}\n" + "word " * (size // 5)} for number in range(count)]


def test_what_is_held_out_is_in_no_training_text_and_the_rest_is_shared_out(tool: ModuleType, tmp_path: Path) -> None:
    jsonl(tmp_path / "english-permissive.jsonl.gz", rows("manual", 400, 500))
    jsonl(tmp_path / "broad.jsonl.gz", rows("wikipedia", 30, 500) + rows("bible-web", 60, 20_000))
    jsonl(tmp_path / "own-subjects.jsonl.gz", rows("own-subjects", 10, 500))
    tool.mixed(Corpus.read(tmp_path / "english-permissive.jsonl.gz"), tmp_path / "mix.jsonl.gz", 0)
    training, held_out = Corpus.read(tmp_path / "mix.jsonl.gz").split(0.1)
    args = argparse.Namespace(work=tmp_path, corpora=tmp_path, kept=0.5)
    both = [(document.source, document.text) for document in tool.broadened(training, args, 0)]
    assert not {document.text for document in held_out} & {text for _, text in both}
    found = Counter(source for source, _ in both)
    assert found["wikipedia"] == 30
    assert found["own-subjects"] == 10
    assert 0.4 < found["manual"] / len(list(training)) < 0.6
    assert 360_000 < sum(len(text) for source, text in both if source == "bible-web") <= tool.PER_SCRIPTURE
    assert len({source for source, _ in both[:20]}) > 1  # shuffled
    assert [(document.source, document.text) for document in tool.broadened(training, args, 0)] == both


def test_long_documents_are_cut_where_a_line_begins_and_no_source_has_more_than_its_share(
    tool: ModuleType, tmp_path: Path
) -> None:
    text = "\n".join(f"line {number} of a long document" for number in range(4_000))
    jsonl(tmp_path / "long.jsonl", [{"source": "s", "text": f"{number}\n{text}"} for number in range(100)])
    tool.mixed(Corpus.read(tmp_path / "long.jsonl"), tmp_path / "mix.jsonl.gz", 0)
    cut = [document.text for document in Corpus.read(tmp_path / "mix.jsonl.gz")]
    assert all(len(one) <= tool.PER_DOCUMENT and one.startswith("line ") for one in cut)
    assert tool.PER_SOURCE - tool.PER_DOCUMENT < sum(map(len, cut)) <= tool.PER_SOURCE
