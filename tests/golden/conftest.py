"""Golden numbers: outputs of the published PyTorch implementation, and the seeded weights behind them."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

TOLERANCE = {"float64": 1e-9, "float32": 1e-4}


class Precision(NamedTuple):
    """The precision that a golden case is computed in, and how closely it must then agree."""

    dtype: str

    def context(self):
        """In which jax computes in this precision."""
        return jax.enable_x64(self.dtype == "float64")

    def arrays(self, tree):
        """The tree with its leaves in this precision; integers stay integers, of the same width."""
        kinds = {"f": self.dtype, "i": self.dtype.replace("float", "int")}
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, kinds[np.asarray(leaf).dtype.kind]), tree)

    def assert_close(self, actual, expected, name="", **tolerances):
        """The largest error is below the tolerance times the largest expected magnitude."""
        actual, expected = np.asarray(actual, np.float64), np.asarray(expected)
        assert actual.shape == expected.shape, name
        tolerance = (TOLERANCE | tolerances)[self.dtype]
        error, magnitude = np.max(np.abs(actual - expected)), np.max(np.abs(expected))
        assert error <= tolerance * magnitude, f"{name}: error {error:.3g}, magnitude {magnitude:.3g}"


@pytest.fixture(params=list(TOLERANCE))
def precision(request):
    precision = Precision(request.param)
    with precision.context():
        yield precision


@pytest.fixture
def precisions():
    return [Precision(dtype) for dtype in TOLERANCE]


class Rectifiers:
    """A rectifier that notes which activations it lets pass, or lets pass those that it is told.

    Of a million activations one or two are as small as a rounding error. In single precision they pass or not as the
    processor happens to sum, and each that passes otherwise than in double precision moves the norm of a gradient by
    more than rounding does. Told what passes in double precision, single precision differs from it by rounding alone.
    """

    def __init__(self):
        self.begin()

    def begin(self, switches=None):
        """Another pass of an encoder is traced; `switches` are what an earlier one noted."""
        self.switches, self._told = [], switches and iter(switches)

    def __call__(self, x):
        switch = x > 0 if self._told is None else next(self._told)
        self.switches.append(switch)
        return jnp.where(switch, x, 0)


@pytest.fixture
def rectifiers(monkeypatch):
    rectifiers = Rectifiers()
    monkeypatch.setattr(nn, "relu", rectifiers)
    return rectifiers


@pytest.fixture(scope="session")
def golden():
    """A function from the name of a file to its arrays, JSON strings parsed."""

    def load(name):
        with np.load(Path(__file__).with_name(f"{name}.npz")) as archive:
            arrays = dict(archive)
        return {key: json.loads(str(value)) if value.dtype.kind == "U" else value for key, value in arrays.items()}

    return load


@pytest.fixture(scope="session")
def seeded_state_dict():
    """A function from a seed and the shapes of a PyTorch state dict to the weights of the golden runs."""

    def draw(seed, shapes):
        arrays = {}
        for i, name in enumerate(sorted(shapes)):
            shape, kind = shapes[name], name.rpartition(".")[2]
            gaussian = np.random.default_rng([seed, i]).standard_normal(shape)
            if kind == "num_batches_tracked":
                arrays[name] = np.zeros(shape)
            elif kind == "running_var":
                arrays[name] = 1 + np.abs(0.1 * gaussian)
            elif len(shape) == 4:
                out_channels, _, height, width = shape
                arrays[name] = gaussian * np.sqrt(2 / (out_channels * height * width))
            elif len(shape) == 2:
                arrays[name] = gaussian / np.sqrt(shape[1])
            else:
                arrays[name] = 0.1 * gaussian + (1 if kind == "weight" else 0)
        return arrays

    return draw
