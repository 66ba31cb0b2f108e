import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import pytest
from processes import outcome_of

REPOSITORY = Path(__file__).parents[1]
TINY = [
    "--config.data.batch_size=64",
    "--config.model.widths=(8, 8)",
    "--config.model.token_d_f=4",
    "--config.predictor.hidden_dim=8",
    "--config.optimizer.warmup_epochs=0",
    "--config.train.epochs=1",
    "--config.log.every_steps=1",
    "--config.evaluation.probe.epochs=2",
    "--config.evaluation.probe.learning_rates=(1e-3,)",
    "--config.evaluation.few_label_probe.labels_per_class=(5,)",
    "--config.evaluation.few_label_probe.fractions=()",
    "--config.evaluation.few_label_probe.draws=2",
    "--config.evaluation.few_label_probe.steps=20",
    "--config.evaluation.few_label_probe.epochs=1",
]
MISTAKES = {
    "no config": ([], "--config: missing"),
    "missing file": (["--config=configs/nowhere.py"], "--config=configs/nowhere.py: there is no file"),
    "not a config": (["--config=hamjepa_jax/errors.py"], "the file has no function get_config"),
    "unknown variant": (["--config=configs/digits.py:byol"], "variant 'byol' is unknown; known: hamjepa, mlp,"),
    "unknown key": (
        ["--config=configs/digits.py", "--config.optimizer.learning_rat=1"],
        "config.optimizer.learning_rat: unknown key; did you mean 'learning_rate'?",
    ),
    "unknown group": (["--config=configs/digits.py", "--config.optimiser.b1=1"], "known in config: checkpoint, data"),
    "a whole group": (["--config=configs/digits.py", "--config.mesh=1"], "set one of its fields: data, fsdp"),
    "wrong type": (
        ["--config=configs/digits.py", "--config.optimizer.learning_rate=fast"],
        "config.optimizer.learning_rate: must be of type float, such as 0.005, got 'fast'",
    ),
    "odd channels": (
        ["--config=configs/digits.py", "--config.model.token_d_f=31"],
        "config.model.token_d_f: must be even",
    ),
    "large batch": (
        ["--config=configs/digits.py", "--config.data.batch_size=2000"],
        "config.data.batch_size: must be between 2 and the 1347 training images, got 2000",
    ),
    "missing data": (
        ["--config=configs/cifar100.py", "--config.data.data_dir=nowhere"],
        "config.data.data_dir: nowhere does not exist; give a folder",
    ),
    "a bucket": (
        ["--config=configs/digits.py", "--workdir=gs://bucket/run"],
        "--workdir=gs://bucket/run: must be a directory; mount the bucket",
    ),
    "half of the processes' flags": (
        ["--config=configs/digits.py", "--num_processes=2"],
        "--coordinator_address: missing; several processes need all of",
    ),
    "unknown checkpoint": (
        ["--config=configs/digits.py", "--config.evaluation.checkpoint=last"],
        "config.evaluation.checkpoint: 'last' is unknown; known: best, newest",
    ),
    "unknown flag": (["--workdri=here"], "did you mean: workdir"),
    "unknown mode": (["--mode=dream"], "should be one of"),
    "a field without a config": (
        ["--mode=evaluate", "--workdir=runs/mine", "--config.evaluation.ks=(1,)"],
        "--config.evaluation.ks=(1,): sets a field of a config, which has to be named: give --config=PATH[:VARIANT]",
    ),
    "unknown option of XLA": (
        ["--config=configs/digits.py", "--config.train.compiler_options=xla_fast=true"],
        "config.train.compiler_options: No such compile option: 'xla_fast'; give options of XLA for this backend (cpu)",
    ),
    "no step in a dispatch": (
        ["--config=configs/digits.py", "--config.train.steps_per_dispatch=0"],
        "config.train.steps_per_dispatch: must be at least 1, got 0",
    ),
    "a profile of no steps": (
        ["--config=configs/digits.py", "--config.profile=7"],
        "config.profile: must be START:STOP",
    ),
    "not a flag": (["--config=configs/digits.py", "train"], "train: not a flag"),
    "a report of no run": (["--mode=report", "tests"], "tests: no run here"),
    "a theory of digits": (["--mode=theory", "--config=configs/digits.py"], "--config: --mode=theory needs none"),
    "a gallery in a bucket": (
        ["--mode=physics", "--workdir=gs://bucket"],
        "--workdir=gs://bucket: must be a directory",
    ),
    "classes of a pendulum": (
        ["--config=configs/pendulum.py", "--config.data.class_list=classes.txt"],
        "config.data.class_list: pendulum has no classes to choose from",
    ),
}


CACHES = tempfile.TemporaryDirectory()


def environment():
    """One device and compiled programs in the user's cache directory, as for a newcomer."""
    left_out = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    return {key: value for key, value in os.environ.items() if key not in left_out} | {"XDG_CACHE_HOME": CACHES.name}


def command(*arguments):
    return [sys.executable, "-m", "hamjepa_jax.main", *arguments]


def run(*arguments):
    return subprocess.run(
        command(*arguments), cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )


def files(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_exit_code_2_and_touches_nothing(mistake, tmp_path):
    arguments, message = MISTAKES[mistake]
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "metrics.jsonl").write_text("precious\n")
    before = files(workdir)
    code, stdout, stderr = outcome_of(f"--workdir={workdir}", *arguments, directory=tmp_path)
    assert (code, stdout) == (2, "")
    (line,) = stderr.splitlines()
    assert line.startswith("error: ")
    assert message.lower() in line.lower()
    assert files(workdir) == before


@pytest.mark.slow
def test_help_names_the_flags():
    finished = run("--help")
    assert finished.returncode == 0
    for flag in ("--config", "--workdir", "--mode", "python -m hamjepa_jax.main --config=configs/digits.py"):
        assert flag in finished.stdout


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A function from a variant to the arguments, the workdir and the outcome of its run, which is made once."""

    @cache
    def make(variant):
        workdir = tmp_path_factory.mktemp(variant) / "run"
        arguments = [f"--config=configs/digits.py:{variant}", f"--workdir={workdir}", *TINY]
        return arguments, workdir, run(*arguments)

    return make


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["hamjepa", "sigreg"])
def test_from_the_command_line_to_the_table_and_the_picture(variant, finished_run):
    _, workdir, finished = finished_run(variant)
    assert (finished.returncode, finished.stderr) == (0, "")
    for expected in ("step 21/21", "views/s", "raw pixels", "untrained encoder", "5-label", "summary.png"):
        assert expected in finished.stdout

    config = json.loads((workdir / "config.json").read_text())
    assert config["data"]["batch_size"] == 64
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 21
    assert (workdir / "evaluation" / "summary.png").stat().st_size > 10_000
    metrics = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    assert (metrics["step"], metrics["seed"], metrics["variant"]) == (21, 42, variant)
    assert list(metrics["features"]) == (["q", "p", "qp", "pooled"] if variant == "hamjepa" else ["whole", "pooled"])
    assert list(metrics["baselines"]) == ["pixels", "random_encoder"]
    for scores in (*metrics["features"].values(), *metrics["baselines"].values()):
        assert scores["knn"]["k"] == [1, 5, 10, 20, 50, 100, 200]
        assert len(scores["knn"]["top1"]) == len(scores["knn"]["top5"]) == 7
        assert 0 <= scores["linear_probe"]["top1"] <= scores["linear_probe"]["top5"] <= 1
        assert list(scores["few_label_probe"]) == ["5"]
        assert scores["linear_probe"]["sweep"]["learning_rate"] == [1e-3, 1e-2]
        low, high = scores["linear_probe"]["top1_interval"]
        assert low <= scores["linear_probe"]["top1"] <= high
        assert len(scores["spectrum"]["eigenvalues"]) == scores["dim"]


@pytest.mark.slow
def test_a_finished_run_is_evaluated_again_and_not_mixed_with_another(finished_run):
    arguments, workdir, _ = finished_run("hamjepa")
    metrics = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    diagnostics = json.loads((workdir / "evaluation" / "diagnostics.json").read_text())
    again = run(*arguments, "--mode=train")
    assert again.returncode == 0
    assert "training is finished at step 21" in again.stdout

    for name in ("metrics.json", "diagnostics.json"):
        (workdir / "evaluation" / name).unlink()
    (workdir / "report.html").unlink()
    evaluated = run("--mode=evaluate", f"--workdir={workdir}")
    assert (evaluated.returncode, evaluated.stderr) == (0, "")
    assert json.loads((workdir / "evaluation" / "metrics.json").read_text()) == metrics
    assert json.loads((workdir / "evaluation" / "diagnostics.json").read_text()) == diagnostics
    assert (workdir / "report.html").stat().st_size > 100_000

    before = files(workdir)
    refused = run(*arguments, "--config.train.seed=7")
    assert refused.returncode == 2
    assert "holds a run of another config: train.seed (42 there, 7 now)" in refused.stderr
    refused = run(*arguments, "--config.model.token_d_f=8")
    assert refused.returncode == 2
    assert "holds a run of another config: model.token_d_f (4 there, 8 now)" in refused.stderr
    assert files(workdir) == before

    longer = run(*arguments, "--mode=train", "--config.train.epochs=2")
    assert (longer.returncode, longer.stderr) == (0, "")
    assert "going on from step 21" in longer.stdout
    assert "step 42/42" in longer.stdout


@pytest.mark.slow
def test_runs_are_reported_side_by_side(finished_run, tmp_path):
    directories = [finished_run(variant)[1] for variant in ("hamjepa", "sigreg")]
    finished = run("--mode=report", *map(str, directories))
    # In the directory that holds both.
    path = os.path.commonpath([directory.parent for directory in directories])
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout == f"written: {path}/report.html\n"
    page = Path(path, "report.html").read_text()
    assert "predictor.name" in page
    assert all(variant in page for variant in ("hamjepa", "sigreg"))
    for arguments, message in (
        ([str(directories[0]), f"{tmp_path}/nowhere"], f"{tmp_path}/nowhere: there is no such directory"),
        ([], "--mode=report: name the directories of one or several runs"),
    ):
        refused = run("--mode=report", *arguments)
        assert refused.returncode == 2
        (line,) = refused.stderr.splitlines()
        assert line.startswith(f"error: {message}")


@pytest.mark.slow
def test_what_is_no_state_is_not_diagnosed(finished_run):
    _, workdir, finished = finished_run("sigreg")
    assert finished.returncode == 0
    assert not (workdir / "evaluation" / "diagnostics.json").exists()
    refused = run("--mode=diagnose", f"--workdir={workdir}")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: config.model.split_qp: must be true for a diagnosis")


@pytest.mark.slow
def test_views_are_drawn_and_nothing_is_trained(tmp_path):
    finished = run("--mode=views", "--config=configs/digits.py", f"--workdir={tmp_path}/run")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout == f"written: {tmp_path}/run/views.png\n"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["views.png"]


@pytest.mark.slow
def test_images_in_a_folder_from_the_command_line_to_the_table(image_folder, tmp_path):
    finished = run(
        "--config=configs/tiny_imagenet100.py:sigreg_multicrop",
        f"--workdir={tmp_path}/run",
        f"--config.data.data_dir={image_folder}",
        *TINY,
        "--config.data.batch_size=16",
        "--config.data.view_size=16",
        "--config.data.local_view_size=8",
        "--config.data.resident_bytes=0",
        "--config.data.num_workers=1",
        "--config.model.depths=(1, 1)",
        "--config.model.token_layer=2",
        "--config.model.token_hw=4",
        "--config.evaluation.ks=(1, 20)",
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "step 6/6" in finished.stdout
    metrics = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
    assert metrics["baselines"]["pixels"]["dim"] == 16 * 16 * 3
    assert 0 <= json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["input_wait"] < 1
    # Red and blue noise differ in every pixel.
    assert metrics["baselines"]["pixels"]["linear_probe"]["top1"] > 0.9


@pytest.mark.slow
def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(tmp_path):
    arguments = ["--config=configs/digits.py", f"--workdir={tmp_path}/run", *TINY, "--config.train.epochs=1000"]
    log = tmp_path / "run" / "metrics.jsonl"
    with subprocess.Popen(
        command(*arguments),
        cwd=REPOSITORY,
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        deadline = time.monotonic() + 120
        while not (log.exists() and log.read_text().count("\n") > 3) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    (line,) = errors.splitlines()
    assert "stopped by SIGINT after step" in line
    assert "to go on, give the same command again: python -m hamjepa_jax.main --config=configs/digits.py" in line
    steps = [json.loads(record)["step"] for record in log.read_text().splitlines()]
    assert steps == list(range(len(steps)))
    assert (tmp_path / "run" / "checkpoints" / str(len(steps))).is_dir()
