"""What eight devices send each other in a training step: gradients, and sums whose size the batch has no part in.

Steps are compiled and not run; their collectives are read out of the programs.
"""

import math
from collections import Counter
from functools import cache
from typing import Any, NamedTuple

import jax
import pytest

from hamjepa_jax import build, sharding, train
from hamjepa_jax.benchmarks import collectives, hlo
from hamjepa_jax.stats import floors
from hamjepa_jax.step import make_train_step

# What a device does on its own is not looked at, so it need not be fast.
COMPILER_OPTIONS = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
NUM_STEPS, PROJECTION_RANK, NUM_DIRECTIONS, NUM_POINTS = 2, 10, 48, 5


class Case(NamedTuple):
    """A step, and how often it encodes: resolutions, parts of the batch, and passes forwards over each of them."""

    config: str
    variant: str
    resident: bool
    changes: tuple[tuple[str, Any], ...] = ()
    resolutions: int = 1
    microbatches: int = 1
    forward_passes: int = 1


HAMJEPA = Case("digits", "hamjepa", True)
SIGREG = Case("digits", "sigreg", True)
MICROBATCHES = Case("digits", "sigreg", True, (("train.microbatches", 2),), microbatches=2, forward_passes=2)
LOCAL_VIEWS = Case("photos", "hamjepa_multicrop", False, resolutions=2)
SHARDED = [Case("digits", "hamjepa", True, (("mesh.data", data), ("mesh.fsdp", 8 // data))) for data in (2, 1)]
REPLICATED = {"HamJEPA": HAMJEPA, "SIGReg": SIGREG, "microbatches": MICROBATCHES, "local views, streamed": LOCAL_VIEWS}
# The same step of a larger batch, and of larger images where the model allows them.
LARGER = {
    "HamJEPA": (("data.batch_size", 64),),
    "SIGReg": (("data.batch_size", 64),),
    "microbatches": (("data.batch_size", 64),),
    "local views, streamed": (
        ("data.batch_size", 64),
        ("data.canvas_size", 40),
        ("data.view_size", 24),
        ("data.local_view_size", 12),
        ("evaluation.resize", 24),
    ),
}


class Step(NamedTuple):
    """A compiled step: its parameters, their placement, d, and the arrays that travel, by kind of collective."""

    params: Any
    shardings: Any
    half_dim: int
    launched: int
    arrays: dict[str, Counter]


@pytest.fixture(scope="module")
def step_of(digits_config, photo_config):
    """A function from a case to its compiled step, which is made once."""

    @cache
    def make(case):
        config = {"digits": digits_config, "photos": photo_config}[case.config](case.variant)
        model = config.model
        model.widths, model.depths, model.token_layer, model.token_hw = (12, 24), (1, 1), 2, 4
        config.predictor.num_steps = NUM_STEPS
        if case.variant == "sigreg":
            sigreg = config.objective.regularizers.sigreg
            sigreg.num_directions, sigreg.test.num_points = NUM_DIRECTIONS, NUM_POINTS
        config.update_from_flattened_dict(dict(case.changes))
        experiment = build.experiment(config)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sharding, "MIN_SHARDED_SIZE", 256)
            # The rank must not depend on the size of the batch.
            patch.setattr(floors, "projection_rank", lambda *sizes: PROJECTION_RANK)
            setup = train.set_up(config, experiment)
            terms = experiment.objective.terms
            train_step = make_train_step(loss=setup.loss, optimizer=experiment.optimizer, terms=terms)
            data = collectives.abstract_data(config.data, setup.mesh, resident=case.resident)
            lowered = collectives.lower(train_step, setup.abstract_state, setup.shardings, setup.mesh, data)
        arrays = {}
        found = hlo.collectives(lowered.compile(COMPILER_OPTIONS).as_text())
        for collective in found:
            for array in collective.results:
                arrays.setdefault(collective.kind, Counter())[array] += collective.times
        params, placed = setup.abstract_state.params, setup.shardings.params
        half_dim = model.token_hw**2 * model.token_d_f // 2
        return Step(params, placed, half_dim, sum(collective.times for collective in found), arrays)

    return make


def plain(shape):
    """A shape however a compiler has transposed it, without axes of length 1."""
    return tuple(sorted(length for length in shape if length > 1))


def kernels(params):
    return Counter(plain(leaf.shape) for leaf in jax.tree.leaves(params) if len(plain(leaf.shape)) > 1)


def times(counter, factor):
    return Counter({key: count * factor for key, count in counter.items()})


def reduced_matrices(step):
    """Shapes with more than one axis that are all-reduced, and how often."""
    found = Counter()
    for array, count in step.arrays["all-reduce"].items():
        if len(plain(array.shape)) > 1:
            found[plain(array.shape)] += count
    return found


def normalised_channels(step):
    named = jax.tree_util.tree_leaves_with_path(step.params["encoder"])
    return [leaf.size for path, leaf in named if path[-1].key == "scale"]


@pytest.mark.parametrize("name", REPLICATED)
def test_nothing_is_sent_but_sums_and_their_size_is_independent_of_batch_and_images(step_of, name):
    case = REPLICATED[name]
    step = step_of(case)
    assert step.arrays.keys() == {"all-reduce"}
    assert step.arrays == step_of(case._replace(changes=case.changes + LARGER[name])).arrays


@pytest.mark.parametrize("name", REPLICATED)
def test_the_gradient_of_every_kernel_is_reduced_once_for_every_use(step_of, name):
    case = REPLICATED[name]
    step = step_of(case)
    # Batch normalisation makes each resolution and each part of the batch a use of its own.
    expected = times(kernels(step.params["encoder"]), case.resolutions * case.microbatches)
    # The energy is used in every force of every step, in both directions of time; each device adds these up by itself.
    expected += kernels(step.params["predictor"])
    if "hamjepa" in case.variant:
        expected[PROJECTION_RANK, PROJECTION_RANK] += 2
    else:
        # The covariance that is watched.
        expected[PROJECTION_RANK, PROJECTION_RANK] += 1
        # Means of cosines and sines of two views at every knot but the first, all at once.
        expected[plain((NUM_POINTS - 1, 2, 2, NUM_DIRECTIONS))] += 1
    assert reduced_matrices(step) == expected


@pytest.mark.parametrize("name", REPLICATED)
def test_statistics_are_few_small_sums(step_of, name):
    case = REPLICATED[name]
    step = step_of(case)
    channels = normalised_channels(step)
    batches = case.resolutions * case.microbatches
    # Forwards a mean and then a variance; backwards the gradients of the bias, the scale and the mean.
    numbers = batches * (2 * case.forward_passes + 3) * sum(channels)
    # The second of the sums forwards needs the first; those backwards come together.
    launched = batches * (2 * case.forward_passes + 1) * len(channels)
    if "hamjepa" in case.variant:
        # For q and p: mean and mean square of the variance floor, the mean of the covariance floor, and gradients of
        # all three; the mean of z; biases of the energy and its last kernel, of one column.
        vectors = sum(leaf.size for leaf in jax.tree.leaves(step.params["predictor"]) if len(plain(leaf.shape)) <= 1)
        numbers += 2 * 6 * step.half_dim + 2 * step.half_dim + vectors
        launched += 2 * 4
    else:
        # What is watched: mean and mean square of every coordinate, and the mean before the covariance.
        numbers += 3 * 2 * step.half_dim
        launched += 3
    scalars, gradients = 16, 2
    found = sum(
        math.prod(array.shape) * count
        for array, count in step.arrays["all-reduce"].items()
        if len(plain(array.shape)) <= 1
    )
    assert found <= numbers + scalars
    assert step.launched <= launched + batches * gradients
    assert {array.dtype for array in step.arrays["all-reduce"]} == {"f32"}


@pytest.mark.parametrize("case", SHARDED, ids=["2 x 4", "1 x 8"])
def test_sharded_parameters_are_gathered_once_and_their_gradients_reduced_like_others(step_of, case):
    step, replicated = step_of(case), step_of(HAMJEPA)
    gathered = Counter()
    for leaf, where in zip(jax.tree.leaves(step.params), jax.tree.leaves(step.shardings), strict=True):
        if not where.is_fully_replicated:
            gathered[plain(leaf.shape)] += 1
    assert len(gathered) > 3
    found = Counter()
    for array, count in step.arrays["all-gather"].items():
        assert array.dtype == "f32"
        found[plain(array.shape)] += count
    assert found == gathered
    assert step.arrays.keys() == {"all-reduce", "all-gather"}
    assert reduced_matrices(step) == reduced_matrices(replicated)
