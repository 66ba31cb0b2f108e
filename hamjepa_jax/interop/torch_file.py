"""Checkpoints of PyTorch (.pth) as NumPy arrays, read without running anything that is in them.

A .pth file is a zip file of a pickle and of the raw numbers of every tensor. A pickle can name any function of Python
to be called while it is read. Where PyTorch is installed, its own weights-only loader reads the file; else the pickle
is read here, by the same rule: tensors and plain containers are made, and a file that names anything else is refused.
"""

import collections
import importlib.util
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

# The type of a storage, in the module torch → that of its numbers.
STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class TorchFileError(ValueError):
    """A file that is no checkpoint of PyTorch, is damaged, or asks for more than tensors and plain containers."""


def has_torch() -> bool:
    """Whether PyTorch is installed."""
    return importlib.util.find_spec("torch") is not None


def read(path: Path) -> Any:
    """Reads a checkpoint.

    Args:
        path: the .pth file.

    Returns:
        What was saved, mostly a dictionary; tensors are NumPy arrays, bfloat16 being a type of ml_dtypes.

    Raises:
        TorchFileError: in one line, if it cannot be read or is refused; nothing that it names was called.
    """
    try:
        with zipfile.ZipFile(path) as file:
            pickled = [name for name in file.namelist() if name.endswith("/data.pkl")]
            if len(pickled) != 1:
                raise TorchFileError(f"{path}: a zip file, but no checkpoint of PyTorch: it holds no data.pkl")
            if has_torch():
                return _read_with_torch(path)
            return _read_with_numpy(file, pickled[0].removesuffix("data.pkl"), path)
    except FileNotFoundError:
        raise TorchFileError(f"{path}: there is no such file") from None
    except zipfile.BadZipFile as error:
        raise TorchFileError(
            f"{path}: not a checkpoint of PyTorch 1.6 or later, which is a zip file ({error}); if it is an older one, "
            "load it in PyTorch and save it again"
        ) from error
    except OSError as error:
        raise TorchFileError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read_with_torch(path: Path) -> Any:
    import torch

    try:
        return _as_numpy(torch.load(path, map_location="cpu", weights_only=True))
    # Whatever a damaged file makes it raise; that of a refused one names what the file asked for.
    except Exception as error:
        raise TorchFileError(f"{path}: refused by PyTorch ({' '.join(str(error).split())[:200]})") from error


def _as_numpy(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        plain = value.detach().contiguous()
        if plain.dtype == torch.bfloat16:
            return plain.view(torch.uint16).numpy().view(jnp.bfloat16)
        return plain.numpy()
    if isinstance(value, dict):
        return {name: _as_numpy(part) for name, part in value.items()}
    return type(value)(map(_as_numpy, value)) if type(value) in (list, tuple) else value


def _read_with_numpy(file: zipfile.ZipFile, folder: str, path: Path) -> Any:
    names = file.namelist()
    if f"{folder}byteorder" in names and file.read(f"{folder}byteorder") != b"little":
        raise TorchFileError(f"{path}: its numbers are big-endian; load it in PyTorch and save it on another machine")
    storages: dict[str, np.ndarray] = {}

    def storage(kind: tuple[str, np.dtype], key: str, count: int) -> np.ndarray:
        if key not in storages:
            storages[key] = np.frombuffer(file.read(f"{folder}data/{key}"), kind[1])
            if len(storages[key]) < count:
                raise ValueError(f"storage {key} has {len(storages[key])} of its {count} numbers")
        return storages[key]

    try:
        with file.open(f"{folder}data.pkl") as pickled:
            return _Unpickler(pickled, storage).load()
    except _RefusedGlobal as refused:
        raise TorchFileError(
            f"{path}: refused, because it names {refused}, which is neither a tensor nor a plain container; nothing "
            "was called; load it where you trust it and save its state dicts alone"
        ) from None
    # Damaged pickles make it raise almost anything.
    except Exception as error:
        reason = " ".join(f"{error}".split())[:200] or type(error).__name__
        raise TorchFileError(f"{path}: damaged ({reason}); fetch it again") from error


class _RefusedGlobal(Exception):
    """What a pickle asked for, MODULE.NAME."""


class _Unpickler(pickle.Unpickler):
    """Makes tensors and plain containers, and nothing else."""

    def __init__(self, file: Any, storage: Callable[[tuple[str, np.dtype], str, int], np.ndarray]):
        super().__init__(file, encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return ("storage", STORAGES[name])
        if (module, name) in HARMLESS:
            return HARMLESS[module, name]
        raise _RefusedGlobal(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, kind, key, _, count = pid
        return self._storage(kind, key, count)


def _tensor(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> np.ndarray:
    """A view of a storage, never of memory beside it."""
    if any(number < 0 for number in (offset, *size, *stride)) or len(size) != len(stride):
        raise ValueError(f"a tensor of size {size} with strides {stride}")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if 0 not in size else -1
    if last >= len(storage):
        raise ValueError(f"a tensor of size {size} reaches beyond its {len(storage)} numbers")
    item = storage.itemsize
    view = np.lib.stride_tricks.as_strided(storage[offset:], size, [item * s for s in stride], writeable=False)
    return np.ascontiguousarray(view).reshape(size)


def _parameter(data: np.ndarray, *_: Any) -> np.ndarray:
    return data


HARMLESS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}
