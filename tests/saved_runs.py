"""Runs that were never trained: a config, and a checkpoint of random weights."""

import json

import jax

from hamjepa_jax import build
from hamjepa_jax.checkpoint import Checkpointer
from hamjepa_jax.workdir import Workdir

STEP = 5


def save_run(config, path, *, seed=3):
    """Makes the directory of a run.

    Args:
        config: the config.
        path: the directory.
        seed: of the weights.

    Returns:
        The directory.
    """
    plain = json.loads(config.to_json())
    Workdir(path).claim(plain)
    state = jax.jit(build.model(config).initial_state)(jax.random.key(seed))
    checkpointer = Checkpointer(path / "checkpoints", keep=1)
    state = state._replace(step=jax.numpy.int32(STEP))
    checkpointer.save(STEP, state, data={"next_step": STEP}, config=plain, metrics={})
    checkpointer.close()
    return path
