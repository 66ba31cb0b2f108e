import jax
import numpy as np
import pytest

from hamjepa_jax.stats import floors, slicing, univariate


@pytest.mark.parametrize("case", range(3))
def test_epps_pulley(golden, precision, case):
    numbers = golden("epps_pulley")
    t_max, num_points, weight = numbers["cases"][case]
    x, cotangent = precision.arrays((numbers["x"], numbers["cotangent"]))
    statistic, pull_back = jax.vjp(
        lambda x: univariate.epps_pulley(x, t_max=t_max, num_points=num_points, weight=weight), x
    )
    precision.assert_close(statistic, numbers[f"statistic_{case}"])
    precision.assert_close(pull_back(cotangent)[0], numbers[f"grad_{case}"])


def test_sigreg(golden, precision):
    numbers = golden("sigreg")
    settings = {"t_max": float(numbers["t_max"]), "num_points": int(numbers["num_points"])}
    z, directions = precision.arrays((numbers["z"], numbers["directions"]))
    value, gradient = jax.value_and_grad(slicing.sigreg)(z, directions, **settings)
    precision.assert_close(value, numbers["value"])
    precision.assert_close(gradient, numbers["grad"])
    precision.assert_close(univariate.epps_pulley(z @ directions, **settings), numbers["per_slice"])


@pytest.mark.parametrize("case", range(2))
def test_variance_floor(golden, precision, case):
    numbers = golden("floors")
    std_floor = float(numbers[f"var_floor_{case}"])
    value, gradient = jax.value_and_grad(lambda x: floors.variance_floor(x, std_floor=std_floor)[0])(
        precision.arrays(numbers["x"])
    )
    precision.assert_close(value, numbers[f"var_value_{case}"])
    precision.assert_close(gradient, numbers[f"var_grad_{case}"])


@pytest.mark.parametrize("case", range(2))
def test_covariance_floor(golden, precision, case):
    numbers = golden("floors")
    logdet_floor, participation_floor, eigmax_ceiling = numbers[f"logdet_thresholds_{case}"].tolist()
    x, projection = precision.arrays((numbers["x"], numbers["projection"]))
    (value, statistics), gradient = jax.value_and_grad(floors.covariance_floor, has_aux=True)(
        x,
        projection,
        logdet_floor=logdet_floor,
        participation_floor=participation_floor,
        eigmax_ceiling=eigmax_ceiling,
    )
    precision.assert_close(value, numbers[f"logdet_value_{case}"])
    precision.assert_close(gradient, numbers[f"logdet_grad_{case}"])
    found = np.stack([statistics[name] for name in ("logdet", "participation", "eigmax")])
    precision.assert_close(found, numbers[f"logdet_stats_{case}"])


def test_energy_budget(golden, precision):
    numbers = golden("floors")
    q_target, p_target = numbers["budget_targets"].tolist()
    value, gradient = jax.value_and_grad(lambda z: floors.energy_budget(z, q_target=q_target, p_target=p_target)[0])(
        precision.arrays(numbers["x"])
    )
    precision.assert_close(value, numbers["budget_value"])
    precision.assert_close(gradient, numbers["budget_grad"])
