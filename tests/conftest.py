"""Eight CPU devices and one compilation cache for every test, set before jax is first imported."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

_CACHE = tempfile.TemporaryDirectory()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import runpy  # noqa: E402
from pathlib import Path  # noqa: E402

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

REPOSITORY = Path(__file__).parents[1]

# The same examples in every run. An example may compile for seconds, so there is no deadline and nothing is shrunk.
hypothesis.settings.register_profile(
    "suite",
    derandomize=True,
    deadline=None,
    database=None,
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
)
hypothesis.settings.load_profile("suite")


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_functions():
    """Frees what a module compiled, which is gigabytes for all of them together."""
    yield
    jax.clear_caches()


@pytest.fixture
def float64():
    """Double precision inside one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def digits_config():
    """A function from a variant to the digits config, shrunk so that a step takes milliseconds."""

    def make(variant: str = "hamjepa") -> ConfigDict:
        config = runpy.run_path(str(REPOSITORY / "configs" / "digits.py"))["get_config"](variant)
        config.data.batch_size = 32
        config.model.widths, config.model.depths = (8, 8), (1, 1)
        config.model.token_d_f = 4
        config.predictor.hidden_dim = 8
        config.optimizer.warmup_epochs = 0
        config.train.epochs = 1
        config.train.max_steps = 4
        config.log.every_steps = 1
        return config

    return make
