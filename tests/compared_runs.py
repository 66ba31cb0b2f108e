"""What runs have logged and saved, compared."""

import json

import jax
import numpy as np
import orbax.checkpoint as ocp


def final_state(workdir):
    """The arrays of the newest state of a run, on whatever devices they were."""
    path = workdir / "checkpoints" / str(saved_steps(workdir)[-1]) / "state"
    reader = ocp.PyTreeCheckpointer()
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(path).item_metadata.tree
    )
    return reader.restore(path, restore_args=as_numpy)


def records(workdir):
    """What was logged, without what depends on the time."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) | dict.fromkeys(("views_per_second", "input_wait")) for line in lines]


def assert_identical(workdir, expected):
    assert records(workdir) == records(expected)
    jax.tree.map(np.testing.assert_array_equal, final_state(workdir), final_state(expected))


def assert_equal_to_rounding(workdir, expected):
    """The same training, but for the order of sums: losses to 1e-5, parameters to 1e-4 of the largest of an array."""
    found, wanted = records(workdir), records(expected)
    assert [record["step"] for record in found] == [record["step"] for record in wanted]
    np.testing.assert_allclose([r["loss"] for r in found], [r["loss"] for r in wanted], rtol=1e-5)
    params, wanted_params = (jax.tree.leaves(final_state(directory)["params"]) for directory in (workdir, expected))
    for leaf, wanted_leaf in zip(params, wanted_params, strict=True):
        np.testing.assert_allclose(leaf, wanted_leaf, rtol=0, atol=1e-4 * max(np.max(np.abs(wanted_leaf)), 1e-3))


def steps_logged(workdir):
    log = workdir / "metrics.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdigit())
