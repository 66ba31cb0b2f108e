from hamjepa_jax.benchmarks import diagnostics
from hamjepa_jax.evaluation.diagnosis_numbers import NUMBERS


def run(variant, seed, *, defect, energy):
    numbers = {"float64": [defect, 3 * defect, 5 * defect, None], "float32": [1e-7]}
    found = {
        "log_abs_det": {"float64": [-20.0 - seed], "float32": [0.0]},
        "symplectic_defect": numbers,
        "singular_values": {"smallest": [0.5], "largest": [2.0]},
        "reversibility": numbers,
        "rollout": {"energy": energy and {"median": [0.0, energy]}, "norm": {"median": [1.0, 1.5 + seed]}},
        "residual_force_ratio": 1.5 if energy else None,
        "prediction": {"error": 0.4, "identity": 0.5, "mean": 0.6},
        "neighbourhood": {"k": [1, 10], "overlap": [0.5, 0.9]},
    }
    return {"variant": variant, "seed": seed, "diagnostics": found}


def test_the_table_shows_medians_and_leaves_open_what_makes_no_sense():
    flows = [run("hamjepa", seed, defect=1e-15, energy=1e-4) for seed in range(2)]
    others = [run("mlp", seed, defect=0.3, energy=None) for seed in range(2)]
    lines = diagnostics.markdown_table([*flows, *others]).splitlines()
    assert lines[0] == "| | hamjepa | mlp |"
    rows = {line.split(" | ")[0][2:]: line for line in lines[2:]}
    assert rows.keys() == NUMBERS.keys()
    assert rows["log abs det J, float64"].endswith("| -20.5 ± 0.7 | -20.5 ± 0.7 |")
    assert rows["defect, float64"].endswith("| 3e-15 ± 0e+00 | 0.900 ± 0.000 |")
    assert rows["drift of the energy after 1,000 applications"].endswith("| 1e-04 ± 0e+00 |  |")
    assert rows["‖z‖/‖z₀‖ after 1,000 applications"].endswith("| 2.00 ± 0.71 | 2.00 ± 0.71 |")
    assert rows["10 nearest neighbours kept"].endswith("| 0.900 ± 0.000 | 0.900 ± 0.000 |")
