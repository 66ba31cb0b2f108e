"""The theory from the command line: both tables, every figure, and the numbers behind them."""

import io
import json
from functools import partial

import jax
import pytest
from PIL import Image
from rich.console import Console

from hamjepa_jax import main
from hamjepa_jax.errors import DisprovedError
from hamjepa_jax.theory import identifiability, run, statements

PICTURES = ("price_of_isotropy", "worst_geometry", "entropy_gap", "coupling_risk")


@pytest.mark.slow
def test_the_theory_is_written_whole(tmp_path, monkeypatch):
    check = partial(statements.check_statements, dims=(2,), condition_numbers=(1.0, 100.0))
    learn = partial(identifiability.learn_couplings, num_pairs=(16,), num_steps=5)
    monkeypatch.setattr(run.statements, "check_statements", check)
    monkeypatch.setattr(run.identifiability, "learn_couplings", learn)
    shown = io.StringIO()
    run.run(tmp_path, Console(file=shown, width=200), num_seeds=2)
    files = {f"theory_{name}.png" for name in (*PICTURES, "identifiability_pairs", "identifiability_coupling")}
    assert {path.name for path in tmp_path.iterdir()} == files | {"theory.json"}
    for name in files:
        assert min(Image.open(tmp_path / name).size) > 500
    written = json.loads((tmp_path / "theory.json").read_text())
    assert len(written["statements"]) == len(statements.CLAIMS)
    assert all(statement["holds"] for statement in written["statements"])
    assert written["identifiability"]["seeds"] == [0, 1]
    assert f"{len(statements.CLAIMS)} of {len(statements.CLAIMS)} statements hold" in shown.getvalue()
    assert f"written: {tmp_path}/theory.json" in shown.getvalue()
    assert not jax.config.jax_enable_x64


def test_a_statement_that_does_not_hold_is_an_error_when_everything_is_written(tmp_path, monkeypatch, capsys):
    wrong = statements.Statement("all is one", "1 = 1", "1 = 2", 1.0, 1e-8)
    monkeypatch.setattr(run.statements, "check_statements", lambda seed: [wrong])
    monkeypatch.setattr(run.identifiability, "learn_couplings", lambda seeds: {})
    monkeypatch.setattr(run.identifiability_figures, "print_table", lambda learned, console: None)
    for figures in (run.figures, run.identifiability_figures):
        monkeypatch.setattr(figures, "draw_all", lambda *arguments, **options: [])
    with pytest.raises(DisprovedError, match="1 of 1 statements do not hold: all is one") as error:
        run.run(tmp_path, Console(file=io.StringIO()))
    assert json.loads((tmp_path / "theory.json").read_text())["statements"][0]["holds"] is False
    assert main.explain(error.value, "theory") == 1
    assert capsys.readouterr().err == f"error: {error.value}\n"
