"""One of two processes of two devices each, which read a batch in shares and compute its loss and gradients together.

    python one_of_two_processes.py COORDINATOR_ADDRESS PROCESS_ID DIRECTORY

The directory holds the configs VARIANT.json; every process writes what it found to VARIANT-PROCESS_ID.npz.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from hamjepa_jax import build, sharding, train

STEP = 3


def main(address: str, process_id: str, directory: str) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes=2, process_id=int(process_id))
    assert (jax.process_count(), jax.device_count()) == (2, 4)
    sharding.MIN_SHARDED_SIZE = 64
    for path in sorted(Path(directory).glob("*.json")):
        config = ConfigDict(json.loads(path.read_text()))
        experiment = build.experiment(config)
        setup = train.set_up(config, experiment)
        state = setup.initialize(setup.key)
        everywhere = sharding.replicated(setup.mesh)
        feed = train.open_feed(config, experiment, setup, Console(), first_step=STEP)
        batch = next(feed)
        value_and_gradient = jax.jit(jax.value_and_grad(setup.loss, has_aux=True), out_shardings=everywhere)
        (value, (terms, batch_stats)), gradient = value_and_gradient(
            state.params, state.batch_stats, setup.key, STEP, feed.dataset, batch
        )
        feed.close()
        found = {"loss": value, "terms": terms, "batch_stats": batch_stats, "gradient": gradient}
        np.savez(path.with_name(f"{path.stem}-{process_id}.npz"), *map(np.asarray, jax.tree.leaves(found)))


if __name__ == "__main__":
    main(*sys.argv[1:])
