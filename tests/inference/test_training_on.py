"""A run that is there, however it came about, is trained on without naming its config."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from saved_runs import save_run

from hamjepa_jax import pretrained


@pytest.mark.slow
def test_a_run_is_trained_on_by_its_own_config(photo_config, tmp_path):
    config = photo_config()
    config.train.max_steps, config.evaluation.ks = 6, (1,)
    config.evaluation.few_label_probe.labels_per_class = (1,)
    before = pretrained.load(save_run(config, tmp_path / "run"))
    command = [sys.executable, "-m", "hamjepa_jax.main", "--mode=train", f"--workdir={tmp_path}/run"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert finished.returncode == 0, finished.stderr
    # It was at step 5.
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [5]
    after = pretrained.load(tmp_path / "run")
    assert (before.step, after.step) == (5, 6)
    changed = jax.tree.map(lambda x, y: not np.array_equal(x, y), before.variables["params"], after.variables["params"])
    assert all(jax.tree.leaves(changed))
