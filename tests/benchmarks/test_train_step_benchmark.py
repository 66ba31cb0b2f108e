import argparse
import sys

import jax
import numpy as np
import pytest

from hamjepa_jax import build
from hamjepa_jax.benchmarks import beside_torch, command_line, step_parts, train_step


def test_a_step_and_its_parts(monkeypatch, photo_config):
    monkeypatch.setattr(step_parts, "RESIDENT_IMAGES", 64)
    config = photo_config()
    step = step_parts.Step(config, build.experiment(config))
    before = jax.device_get(step.state.params)
    step()
    assert not np.array_equal(*(jax.tree.leaves(params)[0] for params in (before, step.state.params)))
    assert len(step.compile_seconds) == 2
    assert step.temporary_bytes > 0
    found = step_parts.parts(step)
    assert set(found) == {"views", "encoder", "flow", "objective", "regularizers", "optimizer"}
    for part in found.values():
        assert part.operations > 0 or part.num_bytes > 0
        jax.block_until_ready(part.run(*part.arguments))
    assert found["objective"].operations > found["flow"].operations
    gradient = found["regularizers"].run(*found["regularizers"].arguments)[1][0]
    # The prediction is no part of them.
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(gradient["predictor"]))
    # Parameters, gradients and moments, read, and three of them written.
    assert found["optimizer"].num_bytes == 7 * 4 * sum(leaf.size for leaf in jax.tree.leaves(before))


def python_that(directory, does):
    """A stand-in for a Python with PyTorch."""
    script = directory / "python"
    script.write_text(f"#!{sys.executable}\nimport sys\n{does}\n")
    script.chmod(0o755)
    return str(script)


def test_a_step_in_pytorch_is_made_when_it_is_asked_for(tmp_path):
    log = tmp_path / "log"
    does = (
        f"for line in sys.stdin:\n    open({str(log)!r}, 'a').write(' '.join(sys.argv[1:]))\n    print(0.5, flush=True)"
    )
    step = beside_torch.TorchStep(python_that(tmp_path, does), "sigreg", ["--batch_size=8"])
    assert not log.exists()
    step()
    step.close()
    assert log.read_text() == "-m hamjepa_jax.benchmarks.torch_step sigreg --batch_size=8"


def test_a_step_in_pytorch_that_fails_is_an_error(tmp_path):
    step = beside_torch.TorchStep(python_that(tmp_path, "sys.exit(1)"), "sigreg", [])
    with pytest.raises(RuntimeError, match="step in PyTorch has failed"):
        step()


def parse(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["script", *arguments])
    return beside_torch.parse(command_line.timing_parser("What it does."))


def test_what_is_no_python_with_pytorch_gets_one_line_where_one_is_wanted(monkeypatch, tmp_path, capsys):
    has_it = python_that(tmp_path, "")
    assert parse(monkeypatch, "--against=torch", f"--torch_python={has_it}").torch_python == has_it
    for python in (str(tmp_path / "nowhere"), python_that(tmp_path, "sys.exit(1)")):
        assert parse(monkeypatch, f"--torch_python={python}").against is None
        with pytest.raises(SystemExit, match="2"):
            parse(monkeypatch, "--against=torch", f"--torch_python={python}")
        assert f"error: --against=torch: {python!r} is not a Python that can import torch" in capsys.readouterr().err


def test_the_ratio_is_that_of_medians():
    assert beside_torch.ratio_to_torch({"seconds": [1.0, 2.0, 30.0], "torch_seconds": [8.0]}) == 0.25


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", ""])
def test_what_does_not_count_gets_one_line(text):
    with pytest.raises(argparse.ArgumentTypeError, match="must be a positive whole number, got"):
        command_line.positive(text)


def test_pytorch_is_asked_for_the_same():
    options = argparse.Namespace(batch_size=8, cores=2, dtype="bfloat16")
    assert train_step.torch_arguments(options) == ["--batch_size=8", "--threads=2", "--bfloat16"]


def test_tables():
    row = {
        "variant": "sigreg",
        "dtype": "float32",
        "views": 128,
        "seconds": [1.0, 2.0, 3.0],
        "torch_seconds": [4.0],
        "compile_seconds": {"cold": 5.0, "cached": 1.25},
        "temporary_bytes": 10**9,
        "parts": {"encoder": {"seconds": [1.0], "floor": 0.5}},
    }
    table = train_step.step_table([row, row | {"torch_seconds": None}]).splitlines()
    assert table[2] == "| sigreg | float32 | 128 | 2.000 | 64 | 4.000 | 0.50 | 5.0 | 1.2 | 1000 |"
    assert "| 64 | | | 5.0 |" in table[3]
    assert train_step.parts_table([row]).endswith("| sigreg | encoder | 1000.0 | 50.0% | 500.00 | 2.0 |")
