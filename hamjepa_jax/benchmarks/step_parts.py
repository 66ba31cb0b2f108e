"""A training step, compiled, and its parts, each a function of its own."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hamjepa_jax import build, environment, sharding, train
from hamjepa_jax.benchmarks.collectives import floating_point_operations
from hamjepa_jax.build_views import Dataset
from hamjepa_jax.step import embed_views

RESIDENT_IMAGES = 50_000


class Part(NamedTuple):
    """A function of a training step that is timed alone.

    Attributes:
        run: the function, jitted, of `arguments`.
        arguments: what it is called with.
        operations: its floating-point operations.
        num_bytes: the bytes that it must read and write.
    """

    run: Callable[..., Any]
    arguments: tuple[Any, ...]
    operations: float
    num_bytes: float


class Step:
    """The training step of an experiment, compiled, and its state.

    Attributes:
        experiment: the experiment.
        setup: what `train.set_up` made of it.
        state: the state, which every call replaces.
        dataset: the images.
        batch: the numbers of a batch's examples.
        compile_seconds: seconds that tracing and compiling took, and then with what the compilation cache held.
        temporary_bytes: bytes of intermediate results.
    """

    def __init__(self, config: Any, experiment: build.Experiment):
        """Compiles the step, and once more with what the compilation cache then holds.

        Args:
            config: the whole config.
            experiment: what `build.experiment` made of it.
        """
        self.experiment, self.setup = experiment, train.set_up(config, experiment)
        self.state = self.setup.initialize(self.setup.key)
        size, everywhere = config.data.canvas_size, sharding.replicated(self.setup.mesh)
        images = np.random.default_rng(0).integers(256, size=(RESIDENT_IMAGES, size, size, 3), dtype=np.uint8)
        sizes = np.full((RESIDENT_IMAGES, 2), size, np.int32)
        self.dataset = sharding.place(Dataset(images, sizes), everywhere)
        numbers = np.arange(config.data.batch_size, dtype=np.int32)
        self.batch = sharding.place(numbers, sharding.batch_sharding(self.setup.mesh))
        requests = np.zeros(len(self.setup.mesh.local_devices), np.int32)
        self._rest = (self.setup.key, jnp.int32(0), requests, self.dataset, self.batch)

        def compiled() -> Any:
            start = time.perf_counter()
            step = train.jit_train_step(config, experiment, self.setup).lower(self.state, *self._rest).compile()
            self.compile_seconds.append(time.perf_counter() - start)
            return step

        self.compile_seconds: list[float] = []
        compiled()
        jax.clear_caches()
        self._step = compiled()
        self.temporary_bytes = self._step.memory_analysis().temp_size_in_bytes

    def __call__(self) -> None:
        """Makes a step and waits for it."""
        self.state, _, _ = self._step(self.state, *self._rest)
        jax.block_until_ready(self.state)


def parts(step: Step) -> dict[str, Part]:
    """The parts of a training step.

    Args:
        step: the step.

    Returns:
        By name: `views` (augmentation), `encoder`, `objective`, `regularizers`, `optimizer` and, where a predictor is
        learned, `flow`, each with its gradients. `objective` contains `regularizers` and `flow`.
    """
    experiment, params, key = step.experiment, step.state.params, step.setup.key
    views = jax.jit(experiment.views)(key, step.dataset, step.batch)
    states = jax.random.normal(key, (*views[0].shape[:2], _state_dim(experiment, views)))

    def encode(encoder: Any, params: Any, views: Any) -> Any:
        def embed(params: Any) -> Any:
            return embed_views(encoder, params, step.state.batch_stats, views)

        z, pull_back, batch_stats = jax.vjp(embed, params, has_aux=True)
        return z, pull_back(z), batch_stats

    def flow(params: Any, z: jax.Array) -> Any:
        def both_ways(params: Any, z: jax.Array) -> tuple[jax.Array, jax.Array]:
            return tuple(experiment.predictor.apply(params, z[view], direction=way) for view, way in ((0, 1), (1, -1)))

        predicted, pull_back = jax.vjp(both_ways, params, z)
        return pull_back(predicted)

    def objective(params: Any, z: jax.Array) -> Any:
        def loss(params: Any, z: jax.Array) -> Any:
            return experiment.objective.loss(params, z, key=key, step=jnp.int32(1))

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, z)

    def regularizers(params: Any, z: jax.Array) -> Any:
        def loss(params: Any, z: jax.Array) -> jax.Array:
            _, metrics = experiment.objective.loss(params, z, key=key, step=jnp.int32(1))
            return sum(metrics[term] for term in experiment.objective.terms if term != "prediction")

        return jax.value_and_grad(loss, argnums=(0, 1))(params, z)

    def optimize(gradient: Any, opt_state: Any, params: Any) -> Any:
        updates, opt_state = experiment.optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    plain = experiment.encoder.clone(spatial_first=False)
    examples = jax.tree.map(lambda leaf: leaf[: len(step.batch)], step.dataset)
    found = {
        "views": _part(experiment.views, (key, step.dataset, step.batch), num_bytes=_num_bytes((examples, views))),
        "encoder": _part(
            lambda *arguments: encode(experiment.encoder, *arguments),
            (params["encoder"], views),
            counted=lambda *arguments: encode(plain, *arguments),
        ),
        "objective": _part(objective, (params, states)),
        "regularizers": _part(regularizers, (params, states), num_bytes=2 * _num_bytes(states)),
        "optimizer": _part(
            optimize,
            (params, step.state.opt_state, params),
            # Parameters and both moments are read and written, and gradients read.
            num_bytes=7 * _num_bytes(params),
        ),
    }
    if jax.tree.leaves(params.get("predictor", {})):
        found["flow"] = _part(flow, (params["predictor"], states))
    return found


def _state_dim(experiment: build.Experiment, views: Any) -> int:
    embedding = jax.eval_shape(
        lambda images: experiment.encoder.init_with_output(jax.random.key(0), images, train=False)[0], views[0][0]
    )
    return embedding.shape[-1]


def _part(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    *,
    counted: Callable[..., Any] | None = None,
    num_bytes: float = 0.0,
) -> Part:
    operations = floating_point_operations(jax.make_jaxpr(counted or function)(*arguments).jaxpr)
    run = jax.jit(function, compiler_options=environment.compiler_options())
    return Part(run, arguments, operations, num_bytes)


def _num_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
