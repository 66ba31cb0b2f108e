"""Stands in for hamjepa_jax.main: runs that take no time, fail, or wait for a signal."""

import pytest

from hamjepa_jax.experiments import __main__ as command_line
from hamjepa_jax.experiments import runs
from hamjepa_jax.experiments.grids import GRIDS, Cell, Grid

STAND_IN = """
import json, os, pathlib, signal, sys, time
flags = dict(argument.lstrip("-").split("=", 1) for argument in sys.argv[1:])
workdir, seed = pathlib.Path(flags["workdir"]), int(flags["config.train.seed"])
variant = flags["config"].partition(":")[2]
workdir.mkdir(parents=True, exist_ok=True)
with open(workdir / "tried", "a") as file:
    file.write(f"{time.monotonic()} {sorted(os.sched_getaffinity(0))}\\n")
(workdir / "leads_a_session").write_text(str(os.getsid(0) == os.getpid()))
print("cache", os.environ["JAX_COMPILATION_CACHE_DIR"])
if variant == "broken":
    sys.exit("something broke")
if variant == "refused":
    print("error: config.data: refused", file=sys.stderr)
    sys.exit(2)
if variant == "waiting" and not (workdir / "saved").exists():
    def save(number, frame):
        (workdir / "saved").touch()
        sys.exit(128 + number)
    signal.signal(signal.SIGTERM, save)
    signal.signal(signal.SIGINT, save)
    (workdir / "ready").touch()
    time.sleep(60)
def scores(top1):
    return {
        "knn": {"k": [1, 20], "top1": [0.1, top1]},
        "linear_probe": {"top1": top1 / 2},
        "few_label_probe": {"1": {"top1": 0.0}, "5": {"top1": top1 / 4}},
        "spectrum": {"effective_rank": 10 * top1},
    }
base = {"good": 0.8, "better": 0.9}.get(variant, 0.5)
(workdir / "evaluation").mkdir()
(workdir / "evaluation" / "metrics.json").write_text(json.dumps({
    "features": {"q": scores(base + 0.01 * seed**2), "p": scores(0.0)},
    "baselines": {"pixels": scores(0.3), "random_encoder": scores(0.4)},
}))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A function from the variants of a grid and flags to the exit code of the command line, made of stand-ins."""
    script, config = tmp_path / "stand_in.py", tmp_path / "config.py"
    script.write_text(STAND_IN)
    config.touch()
    monkeypatch.setattr(runs.Run, "command", property(lambda run: ["python", str(script), *run.arguments]))
    monkeypatch.setattr(command_line, "number_at_once", lambda environment: 1)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)

    def run(*variants, arguments=(), reference=None):
        cells = tuple(Cell(variant, variant) for variant in variants)
        monkeypatch.setitem(GRIDS, "tried", Grid(cells, reference or variants[0]))
        output = f"--output={tmp_path / 'out'}"
        return command_line.main(["experiments", "--grid=tried", f"--config={config}", output, *arguments])

    return run
