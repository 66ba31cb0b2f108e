import pytest

from hamjepa_jax.alarms import Alarms

HEALTHY = {
    "q_logdet": -1.5,
    "q_eigmax": 0.1,
    "q_participation": 0.2,
    "q_min_std": 0.4,
    "gradient_share_prediction": 0.4,
    "gradient_share_logdet_q": 0.6,
    "residual_force_ratio": 0.5,
}
COMPLAINTS = [
    ({"q_logdet": -8.0}, "q is collapsing to a point: log-determinant -8.0 per dimension, smallest standard deviation"),
    ({"q_eigmax": 0.8}, "q is collapsing to a few directions: the largest has 80% of the variance"),
    ({"q_participation": 0.01}, "the participation ratio is 1.0% of the dimensions"),
    ({"gradient_share_logdet_q": 0.0}, "the term 'logdet_q' does not act: 0e+00 of the gradient"),
    ({"residual_force_ratio": 1e-4}, "the learned part of the energy hardly acts: its force is 1e-04 of the base's"),
]


def test_a_healthy_run_is_left_in_peace():
    alarms = Alarms(patience=5)
    assert not any(alarms.check(step, HEALTHY) for step in range(50))


@pytest.mark.parametrize(("change", "message"), COMPLAINTS, ids=[next(iter(change)) for change, _ in COMPLAINTS])
def test_what_lasts_is_said_once(change, message):
    alarms = Alarms(patience=5)
    said = {step: alarms.check(step, HEALTHY | (change if step >= 10 else {})) for step in range(50)}
    assert [step for step, lines in said.items() if lines] == [15]
    (line,) = said[15]
    assert line.startswith("step 15: warning: ")
    assert message in line
    assert line.endswith(", for 5 steps")


@pytest.mark.parametrize(("change", "message"), COMPLAINTS, ids=[next(iter(change)) for change, _ in COMPLAINTS])
def test_what_passes_is_not_said(change, message):
    alarms = Alarms(patience=5)
    for step in range(50):
        assert not alarms.check(step, HEALTHY | (change if step % 5 else {})), message


def test_an_embedding_that_is_no_state_is_watched_too():
    alarms = Alarms(patience=0)
    values = {f"z_{name}": HEALTHY[f"q_{name}"] for name in ("logdet", "eigmax", "participation", "min_std")}
    assert not alarms.check(0, values)
    (line,) = alarms.check(1, values | {"z_eigmax": 0.6})
    assert "z is collapsing to a few directions" in line


def test_several_things_are_said_in_a_line_each():
    alarms = Alarms(patience=0)
    assert len(alarms.check(0, HEALTHY | {"q_logdet": -9.0, "gradient_share_prediction": 0.0})) == 2
