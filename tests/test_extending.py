"""The worked example of docs/extending.md, as it stands there."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from hamjepa_jax import build, feed, regularizers
from hamjepa_jax.step import make_loss, make_train_step

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def test_a_regularizer_is_one_function_and_one_line(digits_config, monkeypatch):
    function, line, use = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names = {"of_samples": regularizers.of_samples}
    exec(function, names)
    monkeypatch.setattr(regularizers, "REGULARIZERS", regularizers.REGULARIZERS | eval(f"{{{line}}}", names))
    monkeypatch.setattr("hamjepa_jax.build_objective.REGULARIZERS", regularizers.REGULARIZERS)
    config = digits_config("hamjepa")
    exec(use, {"config": config})

    experiment = build.experiment(config)
    loss = make_loss(encoder=experiment.encoder, views=experiment.views, objective=experiment.objective)
    terms = experiment.objective.terms
    step = jax.jit(make_train_step(loss=loss, optimizer=experiment.optimizer, terms=terms))
    dataset = jax.tree.map(jnp.asarray, feed.whole(experiment.train_source))
    _, metrics = step(experiment.initial_state(jax.random.key(0)), jax.random.key(1), 0, dataset, np.arange(32))
    assert {"shell", "q_mean_norm", "gradient_share_shell"} <= metrics.keys()
    assert metrics["shell"] > 0
    assert metrics["gradient_share_shell"] > 1e-3
    assert metrics["q_mean_norm"] > 2.0
