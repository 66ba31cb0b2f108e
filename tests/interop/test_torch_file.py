import collections
import os
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import torch_writer

from hamjepa_jax.interop import torch_file
from hamjepa_jax.interop.torch_file import TorchFileError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "saved.pth"


def test_tensors_and_plain_containers_come_back(path):
    rng = np.random.default_rng(0)
    encoder = {"weight": rng.normal(size=(2, 3, 5)).astype("f4"), "count": np.array(7), "half": np.ones(3, "f2")}
    saved = {"config": {"widths": (64, 128), "name": "a"}, "epoch": 30, "encoder": collections.OrderedDict(encoder)}
    torch_writer.write(path, saved | {"nothing": None, "list": [1.5, True]})
    found = torch_file.read(path)
    for name, array in encoder.items():
        assert found["encoder"][name].dtype == array.dtype
        np.testing.assert_array_equal(found["encoder"][name], array)
    assert (found["config"], found["epoch"]) == (saved["config"], 30)
    assert (found["nothing"], found["list"]) == (None, [1.5, True])


def test_tensors_may_share_a_storage_and_lie_in_it_in_any_order():
    storage = np.arange(24.0)
    np.testing.assert_array_equal(torch_file._tensor(storage, 2, (3, 4), (1, 5)), storage[2:22].reshape(4, 5).T[:3])
    assert torch_file._tensor(storage, 23, (), ()) == 23
    assert torch_file._tensor(storage, 24, (0, 3), (3, 1)).shape == (0, 3)


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(1, (24,), (1,)), (0, (5, 5), (5, 1)), (0, (2,), (24,)), (-1, (2,), (1,)), (9, (3,), (-4,)), (0, (2, 2), (1,))],
)
def test_no_tensor_reaches_beyond_its_storage(offset, size, stride):
    with pytest.raises(ValueError, match="a tensor of size"):
        torch_file._tensor(np.arange(24.0), offset, size, stride)


def test_sixteen_bits_of_two_kinds(path):
    assert torch_file.STORAGES["BFloat16Storage"] == jnp.bfloat16
    assert torch_file.STORAGES["HalfStorage"] == np.float16


class Calls:
    """Pickled, it is a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def write_pickle(path, pickled, byteorder="little", name="archive/data.pkl"):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(name, pickled)
        file.writestr("archive/byteorder", byteorder)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_pickle_that_calls_a_function_is_refused_by_name_and_nothing_is_called(path, tmp_path, protocol):
    called = tmp_path / "called"
    write_pickle(path, pickle.dumps({"encoder": Calls(os.mkdir, str(called))}, protocol=protocol))
    with pytest.raises(TorchFileError, match=r"saved\.pth: refused, because it names posix\.mkdir, which is neither"):
        torch_file.read(path)
    assert not called.exists()


@pytest.mark.parametrize(
    "pickled",
    [
        # Attributes of what is allowed, as STACK_GLOBAL can name them.
        b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.",
        b"cnumpy.core.multiarray\n_reconstruct\n.",
        b"ctorch\nload\n.",
        b"ctorch.storage\n_load_from_bytes\n.",
    ],
)
def test_only_what_is_harmless_is_named(path, pickled):
    write_pickle(path, pickled)
    with pytest.raises(TorchFileError, match="refused, because it names"):
        torch_file.read(path)


def test_what_is_no_checkpoint_is_one_line(path, tmp_path):
    with pytest.raises(TorchFileError, match="there is no such file"):
        torch_file.read(tmp_path / "nowhere.pth")
    path.write_bytes(pickle.dumps({"encoder": {}}))
    with pytest.raises(TorchFileError, match=r"not a checkpoint of PyTorch 1\.6 or later"):
        torch_file.read(path)
    write_pickle(path, b"", name="archive/other")
    with pytest.raises(TorchFileError, match=r"a zip file, but no checkpoint of PyTorch: it holds no data\.pkl"):
        torch_file.read(path)
    write_pickle(path, b"\x80\x02}q\x00", byteorder="big")
    with pytest.raises(TorchFileError, match="big-endian"):
        torch_file.read(path)
    with pytest.raises(TorchFileError, match="cannot be read"):
        torch_file.read(tmp_path)


def test_a_damaged_one_is_one_line(path):
    write_pickle(path, b"\x80\x02}q\x00X")
    with pytest.raises(TorchFileError, match=r"damaged \(.*\); fetch it again"):
        torch_file.read(path)
    torch_writer.write(path, {"w": np.arange(100.0)})
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    for missing in ({"archive/data/0": parts["archive/data/0"][:80]}, {"archive/data/0": b""}):
        with zipfile.ZipFile(path, "w") as file:
            for name, content in (parts | missing).items():
                file.writestr(name, content)
        with pytest.raises(TorchFileError, match="storage 0 has .* of its 100 numbers"):
            torch_file.read(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TorchFileError, match="not a checkpoint"):
        torch_file.read(path)
