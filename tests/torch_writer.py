"""Writes checkpoints as PyTorch does, without it: a zip file of a pickle and of the numbers of every tensor."""

import contextlib
import pickle
import sys
import types
import zipfile

import numpy as np

STORAGE_OF = {"f4": "FloatStorage", "f8": "DoubleStorage", "i8": "LongStorage", "f2": "HalfStorage"}


class _Storage:
    def __init__(self, key, array):
        self.key, self.array = key, array


def _stand_in(module, name):
    made = types.FunctionType((lambda *_: None).__code__, globals(), name)
    made.__module__, made.__qualname__ = module, name
    return made


@contextlib.contextmanager
def _pretended_torch():
    """Pickle names a function only where it finds it."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch._utils = utils
    utils._rebuild_tensor_v2 = _stand_in("torch._utils", "_rebuild_tensor_v2")
    utils._rebuild_parameter = _stand_in("torch._utils", "_rebuild_parameter")
    for name in STORAGE_OF.values():
        setattr(torch, name, _stand_in("torch", name))
    before = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules |= {"torch": torch, "torch._utils": utils}
    try:
        yield torch
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def write(path, saved, *, parameters=()):
    """Writes a checkpoint.

    Args:
        path: the .pth file.
        saved: containers and arrays.
        parameters: ids of the arrays that are to be parameters.
    """
    storages = []
    with _pretended_torch() as torch, zipfile.ZipFile(path, "w") as file:

        class Pickler(pickle.Pickler):
            def persistent_id(self, value):
                if not isinstance(value, _Storage):
                    return None
                kind = getattr(torch, STORAGE_OF[value.array.dtype.str[1:]])
                return ("storage", kind, value.key, "cpu", value.array.size)

            def reducer_override(self, value):
                if not isinstance(value, np.ndarray):
                    return NotImplemented
                storages.append(_Storage(str(len(storages)), np.array(value, order="C")))
                strides = tuple(stride // value.itemsize for stride in storages[-1].array.strides)
                arguments = (storages[-1], 0, value.shape, strides, False, {})
                return torch._utils._rebuild_tensor_v2, arguments

        with file.open("archive/data.pkl", "w") as pickled:
            Pickler(pickled, protocol=2).dump(saved)
        file.writestr("archive/byteorder", "little")
        for storage in storages:
            file.writestr(f"archive/data/{storage.key}", storage.array.tobytes())
