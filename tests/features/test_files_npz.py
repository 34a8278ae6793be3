"""npz files: the same numbers as numpy reads, from the disk and not from memory, and never a pickle."""

import pickle
import resource
import subprocess
import sys
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gemscope.errors import CorruptFile, StorageFull, UnsafeFile
from gemscope.features.files.npz import read_npz

quick = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def params(seed=0, d_in=5, d_sae=12):
    random = np.random.default_rng(seed)
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_enc": d_sae, "b_dec": d_in, "threshold": d_sae}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def save(path, arrays, *, compressed=False):
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def assert_same(tensors, arrays):
    assert set(tensors) == set(arrays)
    for name, array in arrays.items():
        assert tensors[name].shape == array.shape
        np.testing.assert_array_equal(tensors[name].numpy(), array)


FLOATS = st.sampled_from([np.dtype(kind) for kind in ("f2", "f4", "f8", ">f4", ">f8")])


@quick
@given(
    arrays=st.dictionaries(
        st.sampled_from(["W_enc", "b_enc", "a name"]),
        FLOATS.flatmap(
            lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
        ),
        min_size=1,
    ),
    fortran=st.booleans(),
    compressed=st.booleans(),
)
def test_the_same_numbers_as_numpy(tmp_path_factory, arrays, fortran, compressed):
    folder = tmp_path_factory.mktemp("npz")
    if fortran:
        arrays = {name: np.asfortranarray(array) for name, array in arrays.items()}
    path = save(folder / "params.npz", arrays, compressed=compressed)
    assert_same(read_npz(path, folder / "cache"), arrays)


def test_a_raw_file_is_mapped_in_place(tmp_path):
    path = save(tmp_path / "params.npz", params() | {"W_dec": np.asfortranarray(params()["W_dec"])})
    tensors = read_npz(path, tmp_path / "cache")
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    ranges = [tuple(int(end, 16) for end in line[0].split("-")) for line in maps]
    for tensor in tensors.values():
        assert any(start <= tensor.data_ptr() < stop for start, stop in ranges)
    assert not (tmp_path / "cache").exists()


def test_what_lies_at_an_odd_offset_multiplies_as_it_should(tmp_path):
    arrays = params(d_in=64, d_sae=128)
    tensors = read_npz(save(tmp_path / "params.npz", arrays), tmp_path)
    assert any(tensor.data_ptr() % 4 for tensor in tensors.values())  # zip does not align
    x = torch.randn(7, 64)
    assert torch.equal(x @ tensors["W_enc"], x @ torch.from_numpy(arrays["W_enc"]))
    assert torch.equal(tensors["W_dec"].norm(dim=1), torch.from_numpy(arrays["W_dec"]).norm(dim=1))


def test_changing_a_mapped_tensor_leaves_the_file_alone(tmp_path):
    path = save(tmp_path / "params.npz", params())
    before = path.read_bytes()
    read_npz(path, tmp_path)["W_enc"].zero_()
    assert path.read_bytes() == before


def test_a_compressed_file_is_unpacked_once(tmp_path):
    path, cache, bars = save(tmp_path / "params.npz", params(), compressed=True), tmp_path / "cache", []

    @contextmanager
    def progress(what, total, unit):
        bars.append([what, total, 0])

        def advance(done):
            bars[-1][2] += done

        yield advance

    assert_same(read_npz(path, cache, progress=progress), params())
    (unpacked,) = cache.iterdir()
    made = unpacked.stat().st_mtime_ns
    assert_same(read_npz(path, cache, progress=progress), params())
    assert [unpacked] == list(cache.iterdir())
    assert unpacked.stat().st_mtime_ns == made
    size = sum(array.nbytes for array in params().values())
    assert bars == [["unpack params.npz", size, size]]


def test_another_file_of_the_same_name_is_unpacked_anew(tmp_path):
    path, cache = tmp_path / "params.npz", tmp_path / "cache"
    assert_same(read_npz(save(path, params(0), compressed=True), cache), params(0))
    assert_same(read_npz(save(path, params(1), compressed=True), cache), params(1))


def test_a_damaged_unpacked_file_is_made_again(tmp_path):
    path, cache = save(tmp_path / "params.npz", params(), compressed=True), tmp_path / "cache"
    read_npz(path, cache)
    (unpacked,) = cache.iterdir()
    unpacked.write_bytes(unpacked.read_bytes()[:-9])
    assert_same(read_npz(path, cache), params())


def test_unpacking_takes_little_memory(tmp_path):
    path = tmp_path / "params.npz"
    np.savez_compressed(path, W_enc=np.zeros((1024, 1 << 14), np.float32))  # 64 MB
    code = f"""if True:
        import resource
        from pathlib import Path
        from gemscope.features.files.npz import _members, _unpack
        from gemscope.progress import silent
        path = Path({str(path)!r})
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        before = peak()
        _unpack(path, _members(path), Path({str(tmp_path / "out.safetensors")!r}), silent)
        assert peak() - before < 32 * 1024, peak() - before
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    path, cache = save(tmp_path / "params.npz", params(d_sae=4096), compressed=True), tmp_path / "cache"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(StorageFull, match="no room"):
            read_npz(path, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not cache.exists()
    assert_same(read_npz(path, cache), params(d_sae=4096))


@pytest.mark.parametrize("compressed", [False, True])
def test_a_truncated_file_is_one_clear_line(tmp_path, compressed):
    path = save(tmp_path / "params.npz", params(), compressed=compressed)
    whole = path.read_bytes()
    for size in (0, 1, 3, 40, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptFile) as caught:
            read_npz(path, tmp_path / "cache")
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())


@quick
@given(data=st.data())
def test_no_damage_raises_anything_but_our_own_errors(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    path = save(folder / "params.npz", params(), compressed=True)
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    with suppress(CorruptFile, UnsafeFile):  # or nothing: some bytes of a zip say nothing
        read_npz(path, folder / "cache")


def test_pickles_are_refused_and_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "it ran"), "w"))

    objects = np.empty(1, dtype=object)
    objects[0] = Bomb()
    np.savez(tmp_path / "objects.npz", W_enc=objects, allow_pickle=True)
    bare = zipfile.ZipFile(tmp_path / "bare.npz", "w")
    bare.writestr("W_enc.npy", pickle.dumps(Bomb()))
    bare.close()
    torch_like = zipfile.ZipFile(tmp_path / "torch.npz", "w")
    torch_like.writestr("archive/data.pkl", pickle.dumps(Bomb(), protocol=0))
    torch_like.close()
    (tmp_path / "plain.npz").write_bytes(pickle.dumps(Bomb()))
    for name in ("objects", "bare", "torch", "plain"):
        with pytest.raises(UnsafeFile, match="pickle"):
            read_npz(tmp_path / f"{name}.npz", tmp_path / "cache")
    assert not (tmp_path / "it ran").exists()


def test_other_contents_are_refused(tmp_path):
    with pytest.raises(CorruptFile, match="int64, expected floats"):
        read_npz(save(tmp_path / "params.npz", {"W_enc": np.arange(3)}), tmp_path)
    (tmp_path / "params.npz").write_bytes(b"<html>not found</html>")
    with pytest.raises(CorruptFile, match="no whole npz"):
        read_npz(tmp_path / "params.npz", tmp_path)
    with zipfile.ZipFile(tmp_path / "params.npz", "w"):
        pass
    with pytest.raises(CorruptFile, match="without arrays"):
        read_npz(tmp_path / "params.npz", tmp_path)
