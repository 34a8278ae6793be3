"""Pickles: plain tensors come out, and nothing else is ever run."""

import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gemscope as gs
from gemscope.errors import CorruptFile, FileError, UnsafeFile
from gemscope.features.files.pickled import read_pickled
from peers import copied, put

RAN = "ran"


class Runs:
    """Unpickled, it makes a folder."""

    def __init__(self, at: Path) -> None:
        self.at = at

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.at),)


def tensors() -> dict[str, Any]:
    return {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}


def zipped(value: object, path: Path, protocol: int = 2) -> Path:
    torch.save(value, path, pickle_protocol=protocol)
    return path


def bare(value: object, path: Path, protocol: int = 2) -> Path:
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    return path


def alone(value: object, path: Path, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("written", [zipped, bare])
def test_plain_tensors_come_out_as_they_went_in(tmp_path: Path, written: Callable[..., Path]) -> None:
    value = OrderedDict(tensors()) | {"k": 3, "name": "x", "in": {"c": torch.nn.Parameter(torch.ones(2))}}
    found = read_pickled(written(value, tmp_path / "a.pt"))
    for name, one in tensors().items():
        torch.testing.assert_close(found[name], one, rtol=0, atol=0)
    assert (found["k"], found["name"], type(found["in"]["c"])) == (3, "x", torch.Tensor)


@pytest.mark.parametrize("written", [zipped, bare, alone])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("place", ["whole", "value", "name", "within", "beside"])
def test_a_pickle_with_code_is_refused_and_nothing_of_it_runs(
    tmp_path: Path, written: Callable[..., Path], protocol: int, place: str
) -> None:
    ran = tmp_path / RAN
    runs = Runs(ran)
    value = {"whole": runs, "value": {"a": runs}, "name": {runs: 1}, "within": {"a": {"b": [runs]}}}.get(
        place, tensors() | {"more": runs}
    )
    path = written(value, tmp_path / "ae.pt", protocol)
    for read in (read_pickled, gs.load_sae):
        with pytest.raises(UnsafeFile, match="pickle") as caught:
            read(path)
        assert "\n" not in str(caught.value)
    assert not ran.exists()


PLACES = [
    ("dictionary_learning/topk/resid_post_layer_3/trainer_0", "ae.pt"),
    ("sparsify/sae/layers.1", "x-SAE-l1.pth"),
    ("sparsify/sae/layers.1", "layer1.sae.pt"),
    ("sparsify/sae/layers.1", "gpt2_z_x_v9.pt"),
    ("sparsify/sae/layers.1", "samples_1.pt"),
    ("llamascopium/jumprelu_dataset", "sae_weights.pt"),
    ("sparsify/sae/layers.1", "cc_weights.pt"),
    ("sparsify/sae/layers.1", "whatever.pt"),
]


@pytest.mark.parametrize(("folder", "file"), PLACES)
def test_in_every_place_where_a_pickle_may_stand_code_is_refused(tmp_path: Path, folder: str, file: str) -> None:
    place = copied(folder, tmp_path / "SAE-Res-x-W1K-L0_5")
    for path in place.glob("*.safetensors"):
        path.unlink()
    put(place / "gpt2_z_x_v9_cfg.json", {"act_name": "blocks.1.attn.hook_z", "act_size": 4, "dict_size": 4})
    zipped(tensors() | {"more": Runs(tmp_path / RAN)}, place / file)
    with pytest.raises(FileError, match=r"calls \w+\.mkdir|crosscoder of two models"):
        gs.load_sae(place / file)
    assert not (tmp_path / RAN).exists()


def test_what_torch_would_let_in_beside_tensors_is_refused_too(tmp_path: Path) -> None:
    for number, value in enumerate(({"a": torch.device("cpu")}, {"a": torch.Size([1])}, {"a": {1, 2}.__class__([1])})):
        path = zipped(value, tmp_path / f"{number}.pt")
        if number < 2:
            torch.load(path, weights_only=True)
        with pytest.raises(UnsafeFile, match="only plain tensors are read"):
            read_pickled(path)


def test_two_pickles_in_one_file_are_refused(tmp_path: Path) -> None:
    path = zipped(tensors(), tmp_path / "a.pt")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/constants.pkl", pickle.dumps(Runs(tmp_path / RAN), 2))
    with pytest.raises(UnsafeFile, match="2 pickles"):
        read_pickled(path)
    assert not (tmp_path / RAN).exists()


def test_a_compressed_file_is_refused(tmp_path: Path) -> None:
    path = zipped(tensors(), tmp_path / "a.pt")
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(CorruptFile, match="is compressed"):
        read_pickled(path)


def test_a_tensor_larger_than_its_bytes_is_refused(tmp_path: Path) -> None:
    path = zipped({"a": torch.ones(1).expand(1 << 40)}, tmp_path / "a.pt")
    with pytest.raises(CorruptFile, match="bytes for less"):
        read_pickled(path)


def test_values_that_contain_one_another_are_looked_at_once(tmp_path: Path) -> None:
    value: Any = {"x": 1}
    for _ in range(6):
        value = {str(number): value for number in range(40)}
    found = read_pickled(zipped(value, tmp_path / "a.pt"))
    assert found["0"]["39"]["1"]["2"]["3"]["4"] == {"x": 1}
    for _ in range(9):
        value = {"in": value}
    with pytest.raises(CorruptFile, match="deeper than 8"):
        read_pickled(zipped(value, tmp_path / "b.pt"))


@pytest.mark.parametrize("data", [b"", b"\x80\x02", b"PK\x03\x04", b"hello", b"\x80\x02}q\x00.", b"\x80\x02K\x01."])
def test_what_is_no_whole_pickle_is_told(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises((UnsafeFile, CorruptFile)):
        read_pickled(tmp_path / "a.pt")


def test_an_older_torch_is_not_trusted_with_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(tensors(), tmp_path / "a.pt")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(UnsafeFile, match=r"PyTorch 2\.9\.1\+cpu does not read safely"):
        read_pickled(path)


def test_what_is_no_dictionary_of_tensors_by_name_is_told(tmp_path: Path) -> None:
    for value, why in (([1], "a pickle of a list"), ({1: 2}, "expected text")):
        with pytest.raises(CorruptFile, match=why):
            read_pickled(zipped(value, tmp_path / "a.pt"))
