"""Eight CPU devices and one compilation cache for every test, set before jax is first imported."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the suite's time is compilation. Processes that tests start compile as users do.
_FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}"

_CACHE = tempfile.TemporaryDirectory()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import runpy  # noqa: E402
from pathlib import Path  # noqa: E402

import hypothesis  # noqa: E402
import jax  # noqa: E402
import jax.extend  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402
from PIL import Image  # noqa: E402

from hamjepa_jax.data import pendulum  # noqa: E402
from hamjepa_jax.objectives import CovarianceFloor  # noqa: E402

REPOSITORY = Path(__file__).parents[1]

# Most programs of the tests take longer to compile than to run.
jax.config.update("jax_disable_most_optimizations", True)

# The same examples in every run. An example may compile for seconds, so there is no deadline and nothing is shrunk.
hypothesis.settings.register_profile(
    "suite",
    derandomize=True,
    deadline=None,
    database=None,
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
)
hypothesis.settings.load_profile("suite")


def pytest_collection_modifyitems(items):
    """Has the files with slow tests begin first, so that no process is left alone with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_functions():
    """Frees what a module compiled, which is gigabytes for all of them together."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def compiled_with_optimizations():
    """Has XLA optimize, in modules that compare bits which only optimized programs share."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def float64():
    """Double precision inside one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def equations():
    """A function from a jaxpr to all of its equations and of those inside it."""

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            yield equation
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from walk(inner)

    return lambda jaxpr: list(walk(jaxpr))


@pytest.fixture(scope="session")
def double_precision(equations):
    """A function from a jaxpr to its equations whose results are arrays in double precision."""
    double = (np.dtype("float64"), np.dtype("complex128"))

    def find(jaxpr):
        return [e for e in equations(jaxpr) for out in e.outvars if out.aval.ndim and out.aval.dtype in double]

    return find


def config_of(name: str, variant: str) -> ConfigDict:
    """A shipped config, with a model so small that a step takes milliseconds."""
    config = runpy.run_path(str(REPOSITORY / "configs" / f"{name}.py"))["get_config"](variant)
    config.data.batch_size = 32
    if config.model.name == "resnet":
        config.model.widths, config.model.depths, config.model.token_layer = (8, 8), (1, 1), 2
    else:
        config.model.hidden_dim, config.model.depth, config.model.num_heads = 8, 1, 2
    config.model.token_d_f, config.model.dtype = 4, "float32"
    config.predictor.hidden_dim = 8
    config.optimizer.warmup_epochs = 0
    config.train.epochs = 1
    config.train.max_steps = 4
    config.log.every_steps = 1
    return config


@pytest.fixture(scope="session")
def digits_config():
    """A function from a variant to the digits config, made small."""
    return lambda variant="hamjepa": config_of("digits", variant)


@pytest.fixture(scope="session")
def film_config():
    """A function from a variant to the config of the pendulum, made small."""
    return lambda variant="hamjepa": config_of("pendulum", variant)


@pytest.fixture
def few_films(monkeypatch):
    """Data sets of 64 training and 64 test films."""
    monkeypatch.setattr(pendulum, "NUM_IMAGES", {"train": 64, "test": 64})


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """An image folder: 96 training and 24 validation photographs of noise, of two classes and many sizes."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 48), ("val", 12)):
        for name, color in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                height, width = rng.integers(12, 40, size=2)
                noise = rng.integers(256, size=(height, width, 3))
                pixels = ((noise + np.array(color)) / 2).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.jpg")
    return root


@pytest.fixture(scope="session")
def photo_config(image_folder):
    """A function from a variant to the Tiny-ImageNet config, made small, on the images of `image_folder`."""

    def make(variant: str = "hamjepa") -> ConfigDict:
        config = config_of("tiny_imagenet100", variant)
        config.data.data_dir = str(image_folder)
        config.data.view_size, config.data.local_view_size, config.data.canvas_size = 16, 8, 24
        config.model.token_hw = 4
        config.train.epochs = 2
        config.evaluation.resize = 16
        return config

    return make


@pytest.fixture(scope="session")
def published_hamjepa():
    """The settings of the two published forms of HamJEPA: keyword arguments of `objectives.hamjepa`."""
    common = {
        "detach_target": True,
        "energy_weight": 0.0,
        "budget_weight": 0.2,
        "q_target": 1.0,
        "p_target": 1.0,
        "std_floor": 0.2,
        "mean_weight": 0.05,
    }
    cifar100 = {
        "match": "q",
        "p_weight": 0.2,
        "bidirectional": "inverse",
        "variance_on": ("q", "p"),
        "variance_weight": 0.5,
        "logdet_weight": 0.5,
        "covariance_floor_q": CovarianceFloor(-1.5, 0.12, 0.35),
        "covariance_floor_p": CovarianceFloor(-1.5, 0.16, 0.30),
    }
    imagenet100 = {
        "match": "qp",
        "p_weight": 0.2,
        "bidirectional": "swap",
        "variance_on": ("q",),
        "variance_weight": 1.0,
        "logdet_weight": 1.0,
        "covariance_floor_q": CovarianceFloor(-1.2, 0.25, 0.10),
        "covariance_floor_p": CovarianceFloor(-1.2, 0.25, 0.10),
    }
    return {"cifar100": common | cifar100, "imagenet100": common | imagenet100}
