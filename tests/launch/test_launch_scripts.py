"""The scripts in launch/, with stand-ins for Python and for the tools of every service. Nothing of them needs jax."""

import contextlib
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = sorted(path for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))


def is_alive(pid):
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    return False


# All of them


def test_there_is_a_script_for_each_service():
    assert [path.name for path in SCRIPTS] == [
        "experiments.sbatch",
        "gke.sh",
        "local.sh",
        "reproduce_cifar10.sh",
        "reproduce_cifar100.sh",
        "reproduce_tiny_imagenet100.sh",
        "slurm.sbatch",
        "tpu_pod.sh",
    ]
    assert all(os.access(path, os.X_OK) for path in SCRIPTS)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path):
    subprocess.run(["bash", "-n", path], check=True)
    beside_python = Path(sys.executable).parent
    shellcheck = shutil.which("shellcheck", path=f"{beside_python}:{os.environ['PATH']}")
    assert shellcheck, "not installed; it comes with pip install -e '.[test]'"
    found = subprocess.run([shellcheck, path], capture_output=True, text=True)
    assert not found.stdout


# The others leave it to hamjepa_jax.experiments to judge what they pass on.
@pytest.mark.parametrize(
    "path", [path for path in SCRIPTS if not path.name.startswith("reproduce")], ids=lambda path: path.name
)
def test_a_wrong_argument_is_one_line(path, bench):
    result = bench.run(path, *["--nonsense"] * (path.suffix == ".sh"), ZONE="z")
    assert (result.returncode, result.stdout, bench.calls()) == (2, "", [])
    assert re.fullmatch(r"error: .*\n", result.stderr)


@pytest.mark.parametrize("path", [path for path in SCRIPTS if path.suffix == ".sh"], ids=lambda path: path.name)
def test_help_is_the_head_of_the_file(path, bench):
    result = bench.run(path, "--help")
    assert result.returncode == 0
    assert f"launch/{path.name}" in result.stdout
    assert "--dry-run" in result.stdout
    assert "set -e" not in result.stdout


# local.sh


def test_local_gives_every_process_its_number_and_the_same_address(bench):
    arguments = ["--config=configs/digits.py", "--config.model.widths=(8, 8)", "--x=it's"]
    result = bench.run("local.sh", "--processes=3", "--", *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert all(f"process ['{i}'] prints" in result.stdout for i in range(3))
    seen = bench.lines("arguments")
    assert len(seen) == 3
    for number, words in seen.items():
        assert words[:5] == ["-m", "hamjepa_jax.main", *arguments]
        address, *rest = words[5:]
        assert rest == ["--num_processes=3", f"--process_id={number}"]
        assert re.fullmatch(r"--coordinator_address=127\.0\.0\.1:[23]\d{4}", address)
    assert len({words[5] for words in seen.values()}) == 1


def test_local_takes_the_given_port(bench):
    bench.run("local.sh", "--port=4321", "--", "--a")
    assert {words[3] for words in bench.lines("arguments").values()} == {"--coordinator_address=127.0.0.1:4321"}


def test_local_prints_what_it_would_start(bench):
    result = bench.run(
        "local.sh", "--dry-run", "--devices_per_process=4", "--port=1", "--", "--w=(8, 8)", XLA_FLAGS="--a"
    )
    assert result.returncode == 0
    assert [shlex.split(line) for line in result.stdout.splitlines()] == [
        [
            *["env", "XLA_FLAGS=--a --xla_force_host_platform_device_count=4", "python", "-m", "hamjepa_jax.main"],
            *["--w=(8, 8)", "--coordinator_address=127.0.0.1:1", "--num_processes=2", f"--process_id={i}"],
        ]
        for i in range(2)
    ]
    assert not bench.lines("arguments")


def test_local_pretends_the_devices_of_a_cpu(bench):
    bench.run("local.sh", "--devices_per_process=4", "--", "--a", CUDA_VISIBLE_DEVICES="")
    for lines in bench.lines("environment").values():
        assert lines[:2] == ["XLA_FLAGS=--xla_force_host_platform_device_count=4", "CUDA_VISIBLE_DEVICES="]


@pytest.mark.parametrize(
    ("options", "environment", "shares"),
    [
        (["--processes=2"], {}, ["0,1,2,3", "4,5,6,7"]),
        (["--processes=2", "--devices_per_process=1"], {}, ["0", "1"]),
        (["--processes=2"], {"CUDA_VISIBLE_DEVICES": "6,2,GPU-a"}, ["6", "2"]),
        # One process takes all that there are, and a run on the CPU none.
        (["--processes=1"], {}, [""]),
        (["--processes=2"], {"JAX_PLATFORMS": "cpu"}, ["", ""]),
    ],
)
def test_local_shares_the_gpus(bench, options, environment, shares):
    bench.answer("nvidia-smi", "printf '%s\\n' 0 1 2 3 4 5 6 7")
    assert bench.run("local.sh", *options, "--", "--a", **environment).returncode == 0
    seen = bench.lines("environment")
    assert [seen[i][1] for i in sorted(seen)] == [f"CUDA_VISIBLE_DEVICES={share}" for share in shares]


def test_local_wants_a_gpu_for_every_process(bench):
    bench.answer("nvidia-smi", "echo 0")
    result = bench.run("local.sh", "--", "--a")
    assert (result.returncode, bench.lines("arguments")) == (2, {})
    assert result.stderr.startswith("error: 1 GPUs are not enough for 2 processes;")


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ({0: 0, 1: 0, 2: 0}, 0),
        ({0: 4, 1: 3, 2: 134}, 3),
        ({0: 134, 1: 4, 2: 1}, 1),
        ({0: 134, 1: 0, 2: 0}, 4),
        ({0: 0, 1: 4, 2: 0}, 4),
    ],
)
def test_local_ends_with_the_cause(bench, codes, expected):
    do = ",".join(f"{i}:exit {code}" for i, code in codes.items())
    result = bench.run("local.sh", "--processes=3", "--", "--a", DO=do)
    assert result.returncode == expected
    assert sorted(result.stderr.splitlines()) == [
        f"local.sh: process {i} ended with exit code {code}" for i, code in codes.items() if code
    ]


def test_local_ends_what_does_not_notice_that_a_process_has_failed(bench):
    started = time.monotonic()
    result = bench.run("local.sh", "--processes=3", "--patience=1", "--", "--a", DO="0:hang,1:exit 3,2:exit 4")
    assert 1 <= time.monotonic() - started < 30
    assert result.returncode == 3
    assert "which has not ended within 1 s" in result.stderr
    assert "Killed" not in result.stderr
    assert not any(is_alive(pid) for (pid,) in bench.lines("ready").values())


def test_local_waits_for_the_others_while_it_has_patience(bench):
    process = bench.start("local.sh", "--", "--a", DO="0:wait,1:exit 3")
    bench.wait_for("ready", 2)
    time.sleep(0.6)
    assert process.poll() is None
    os.kill(int(bench.lines("ready")[0][0]), signal.SIGTERM)
    assert process.wait(10) == 3
    assert bench.lines("saved") == {0: ["yes"]}


@pytest.mark.parametrize(("number", "heard"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGTERM")])
def test_local_passes_a_signal_on_once_and_waits(bench, number, heard):
    process = bench.start("local.sh", "--processes=3", "--", "--a", DO="0:wait,1:wait,2:wait")
    bench.wait_for("ready", 3)
    process.send_signal(number)
    assert process.wait(10) == 143
    assert bench.lines("signals") == {i: [heard] for i in range(3)}
    assert bench.lines("saved") == {i: ["yes"] for i in range(3)}


def test_local_passes_a_second_signal_on_too(bench):
    process = bench.start("local.sh", "--patience=1", "--", "--a", DO="0:hang,1:hang")
    bench.wait_for("ready", 2)
    for count in (1, 2):
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 5
        while any(len(bench.lines("signals").get(i, [])) < count for i in range(2)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert bench.lines("signals") == {i: ["SIGTERM"] * 2 for i in range(2)}
    process.kill()
    process.wait()


def test_local_passes_ctrl_c_on_once(bench):
    pid, terminal = pty.fork()
    if pid == 0:
        environment = bench.environment | {"DO": "0:wait,1:wait"}
        os.execvpe("bash", ["bash", str(LAUNCH / "local.sh"), "--", "--a"], environment)
    try:
        bench.wait_for("ready", 2)
        # The terminal gives it to the whole group of processes in the foreground.
        os.write(terminal, b"\x03")
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 130
    assert bench.lines("signals") == {i: ["SIGINT"] for i in range(2)}
    # They would be stopped if they read from the terminal.
    assert bench.lines("input") == {i: ["/dev/null"] for i in range(2)}
    # Not ignored before they have handlers of their own.
    assert all("default_int_handler" in lines[0] for lines in bench.lines("dispositions").values())


# slurm.sbatch

SRUN = ["srun", "--kill-on-bad-exit=0", "--wait=300", "--gpu-bind=none"]
# What srun would do with two tasks: the highest exit code.
TWO_TASKS = """
while [[ $1 == --* ]]; do shift; done
highest=0
for id in 0 1; do
  "$@" "--process_id=$id" >/dev/null
  code=$?
  ((code <= highest)) || highest=$code
done
exit $highest
"""


def test_slurm_prints_what_it_would_run(bench):
    result = bench.run("slurm.sbatch", "--dry-run", "--config=a", "--w=(8, 8)", SLURM_CPUS_PER_TASK="12")
    assert (result.returncode, bench.calls()) == (0, [])
    assert result.stdout.startswith("srun --kill-on-bad-exit=0 --wait=300 --gpu-bind=none --cpus-per-task=12 bash -c ")
    assert result.stdout.endswith("task python -m hamjepa_jax.main --config=a --w=\\(8\\,\\ 8\\)\n")


def test_slurm_refuses_to_run_outside_of_a_job(bench):
    result = bench.run("slurm.sbatch", "--config=a")
    assert (result.returncode, bench.calls()) == (2, [])
    assert result.stderr == "error: not a job of Slurm; give this script to sbatch, or try --dry-run\n"


def test_slurm_starts_a_process_for_each_gpu_and_asks_for_time_to_save():
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", (LAUNCH / "slurm.sbatch").read_text(), re.MULTILINE))
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert "gpus-per-task" not in options
    assert "requeue" in options
    number, seconds = re.fullmatch(r"(\w+)@(\d+)", options["signal"]).groups()
    assert number in ("INT", "TERM")
    # config.checkpoint.grace_seconds is 25.
    assert int(seconds) >= 60


@pytest.mark.parametrize(
    ("codes", "expected", "again"),
    [
        ((0, 0), 0, False),
        # The reason, not the loss that the other process saw.
        ((3, 4), 3, False),
        ((134, 1), 1, False),
        ((2, 2), 2, False),
        ((137, 4), 137, False),
        ((4, 134), 4, True),
        ((143, 143), 143, True),
        ((130, 130), 130, True),
    ],
)
def test_slurm_queues_the_job_again_only_if_that_helps(bench, codes, expected, again):
    bench.answer("srun", TWO_TASKS)
    bench.answer("squeue", "echo RUNNING")
    do = ",".join(f"{i}:exit {code}" for i, code in enumerate(codes))
    result = bench.run("slurm.sbatch", "--config=a", "--w=(8, 8)", DO=do, SLURM_JOB_ID="17", SLURM_CPUS_PER_TASK="12")
    first, *rest = bench.calls()
    assert first[:7] == [*SRUN, "--cpus-per-task=12", "bash", "-c"]
    assert first[8:] == ["task", "python", "-m", "hamjepa_jax.main", "--config=a", "--w=(8, 8)"]
    if again:
        assert rest == [["squeue", "--noheader", "--format=%T", "--jobs=17"], ["scontrol", "requeue", "17"]]
        assert f"exit code {expected}: queueing the job again" in result.stdout
        assert result.returncode == 0
    else:
        assert rest == []
        assert (result.returncode, result.stdout) == (expected, f"exit code {expected}\n")


@pytest.mark.parametrize(
    ("state", "restarts", "requeue"),
    [("COMPLETING", "0", "exit 0"), ("RUNNING", "3", "exit 0"), ("RUNNING", "2", "exit 1")],
)
def test_slurm_leaves_a_job_that_was_cancelled_failed_too_often_or_may_not_come_back(bench, state, restarts, requeue):
    bench.answer("srun", "exit 143")
    bench.answer("squeue", f"echo {state}")
    bench.answer("scontrol", requeue)
    result = bench.run("slurm.sbatch", "--a", SLURM_JOB_ID="17", MAX_RESTARTS="3", SLURM_RESTART_COUNT=restarts)
    assert result.returncode == 143
    assert (["scontrol", "requeue", "17"] in bench.calls()) == (requeue == "exit 1")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_slurm_lets_the_tasks_save_when_slurm_signals_all_processes_of_the_job(bench, number, code):
    bench.answer("srun", "trap : INT TERM; " + TWO_TASKS.replace("for id in 0 1", "for id in 0"))
    bench.answer("squeue", "echo RUNNING")
    process = subprocess.Popen(
        ["bash", LAUNCH / "slurm.sbatch", "--a"],
        env=bench.environment | {"SLURM_JOB_ID": "17", "DO": "0:wait"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    bench.wait_for("ready", 1)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=10)
    assert bench.lines("saved") == {0: ["yes"]}
    assert f"exit code {code}: queueing" in output


# tpu_pod.sh

POD = {"NAME": "mine", "ZONE": "z1", "PROJECT": "p", "ACCELERATOR_TYPE": "v6e-16", "RUNTIME_VERSION": "r"}
WHERE = ["--zone=z1", "--project=p"]
TPUS = ["gcloud", "compute", "tpus"]
SSH_ALL = [*TPUS, "tpu-vm", "ssh", "mine", "--worker=all"]
# Two machines, each with a home of its own, on which what comes by ssh is really run.
MACHINES = """
for word; do
  case $word in
    --command=*) command=${word#*=} ;;
    --worker=all) machines='0 1' ;;
    --worker=0) machines=0 ;;
  esac
done
if [[ ${command:-} != *apt* && ${command:-} != *pip* ]]; then
  result=0
  for machine in $machines; do
    (cd "$HOME/machine$machine" && mkdir -p record && RECORD=$PWD/record bash -c "$command") || result=1
  done
  exit $result
fi
"""


@pytest.fixture
def machines(bench):
    homes = [bench.record.parent / f"machine{i}" for i in range(2)]
    for home in homes:
        (home / "hamjepa_jax/.venv/bin").mkdir(parents=True)
        (home / "hamjepa_jax/.venv/bin/python").symlink_to(bench.bin / "python")
    bench.answer("gcloud", MACHINES)
    yield homes
    for home in homes:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((home / "hamjepa_jax/run.pid").read_text()), signal.SIGKILL)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, [["tpu-vm", "create", "mine", "--accelerator-type=v6e-16", "--version=r"]]),
        ({"SPOT": "1"}, [["tpu-vm", "create", "mine", "--accelerator-type=v6e-16", "--version=r", "--spot"]]),
        (
            {"SPOT": "1", "QUEUED": "1"},
            [
                [
                    *["queued-resources", "create", "mine", "--node-id=mine", "--accelerator-type=v6e-16"],
                    *["--runtime-version=r", "--spot"],
                ],
                ["queued-resources", "describe", "mine", "--format=value(state.state)"],
            ],
        ),
    ],
)
def test_tpu_create(bench, environment, expected):
    bench.answer("gcloud", "echo ACTIVE")
    assert bench.run("tpu_pod.sh", "create", **POD, **environment).returncode == 0
    assert bench.calls() == [[*TPUS, *call, *WHERE] for call in expected]


def test_tpu_create_waits_for_a_queued_resource(bench):
    states = """
[[ $4 == describe ]] || exit 0
echo x >>$RECORD/asked
(($(wc -l <$RECORD/asked) > 2)) && echo $LAST || echo PROVISIONING
"""
    bench.answer("gcloud", states)
    result = bench.run("tpu_pod.sh", "create", **POD, QUEUED="1", POLL_SECONDS="0", LAST="ACTIVE")
    assert result.returncode == 0
    assert "mine: PROVISIONING\nmine: ACTIVE\n" in result.stdout
    assert bench.run("tpu_pod.sh", "create", **POD, QUEUED="1", POLL_SECONDS="0", LAST="FAILED").returncode == 1


@pytest.mark.parametrize(
    ("shared", "mounts"),
    [({"BUCKET": "b"}, "gcsfuse --implicit-dirs"), ({"FILESTORE": "10.0.0.2:/share"}, "mount -t nfs")],
)
def test_tpu_setup(bench, shared, mounts):
    bench.answer("gcloud", 'for word; do [[ $word != /* ]] || tar -tzf "$word" >"$RECORD/archive"; done')
    result = bench.run("tpu_pod.sh", "setup", **POD, **shared)
    assert (result.returncode, result.stderr) == (0, "")
    copy, install, mount = bench.calls()
    archive = f"{bench.record.parent}/mine-hamjepa_jax.tar.gz"
    assert copy == [*TPUS, "tpu-vm", "scp", archive, "mine:hamjepa_jax.tar.gz", "--worker=all", *WHERE]
    packed = (bench.record / "archive").read_text()
    assert all(f"{name}\n" in packed for name in ("hamjepa_jax/main.py", "configs/digits.py", "setup.cfg"))
    assert "__pycache__" not in packed
    assert not Path(archive).exists()
    for call in (install, mount):
        assert (call[:-3], call[-2:]) == (SSH_ALL, WHERE)
        words = shlex.split(call[-3].removeprefix("--command="))
        assert words[:2] == ["bash", "-c"]
        subprocess.run(["bash", "-n", "-c", words[2]], check=True)
    assert '"./hamjepa_jax[tpu]"' in install[-3]
    assert mounts in mount[-3]
    assert words[4:] == ["/mnt/hamjepa", *shared.values()]


def test_tpu_runs_on_all_machines_and_stops(bench, machines):
    arguments = ["--config=a", "--w=(8, 8)", "--x=it's"]
    do = {"DO": "0:wait"}
    result = bench.run("tpu_pod.sh", "run", "--", *arguments, **POD, **do)
    assert (result.returncode, result.stderr) == (0, "")
    (call,) = bench.calls()
    assert (call[:-3], call[-2:]) == (SSH_ALL, WHERE)
    for home in machines:
        deadline = time.monotonic() + 5
        while not (home / "record/0.ready").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert (home / "record/0.arguments").read_text().splitlines() == ["-m", "hamjepa_jax.main", *arguments]
    # Not twice in one place.
    result = bench.run("tpu_pod.sh", "run", "--", *arguments, **POD, **do)
    assert result.returncode != 0
    assert result.stderr == "a run is going on here; stop it, or tail it\n" * 2
    assert bench.run("tpu_pod.sh", "stop", **POD).returncode == 0
    for home in machines:
        assert (home / "record/0.signals").read_text() == "SIGTERM\n"
        assert (home / "record/0.saved").exists()
        assert (home / "hamjepa_jax/run.log").read_text().endswith("exit code 143\n")
    assert bench.run("tpu_pod.sh", "stop", **POD).stdout == "no run is going on here\n" * 2
    # And on, in the same log.
    assert bench.run("tpu_pod.sh", "run", "--", *arguments, **POD, DO="0:exit 0").returncode == 0
    for home in machines:
        deadline = time.monotonic() + 5
        while not (log := (home / "hamjepa_jax/run.log").read_text()).endswith("exit code 0\n"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert "exit code 143\n" in log


def test_tpu_tail(bench):
    bench.run("tpu_pod.sh", "tail", **POD)
    command = "--command=tail -n 40 -F hamjepa_jax/run.log"
    assert bench.calls() == [[*TPUS, "tpu-vm", "ssh", "mine", "--worker=0", command, *WHERE]]


@pytest.mark.parametrize(
    ("answer", "queued", "expected"),
    [
        ("echo READY", "", ["describe", "ssh"]),
        ("echo PREEMPTED", "", ["describe", "delete", "create", "scp", "ssh", "ssh", "ssh"]),
        ("echo ERROR: NOT_FOUND: no such node >&2; exit 1", "", ["describe", "create", "scp", "ssh", "ssh", "ssh"]),
        (
            "echo PREEMPTED",
            "1",
            ["describe", "delete", "create", "describe", "scp", "ssh", "ssh", "ssh"],
        ),
        ("echo CREATING", "", ["describe"]),
        # Who may not ask does not know that it is gone.
        ("echo ERROR: PERMISSION_DENIED >&2; exit 1", "", ["describe"]),
    ],
)
def test_tpu_resume(bench, answer, queued, expected):
    bench.answer("gcloud", f'[[ "$3 $4" != "tpu-vm describe" ]] || {{ {answer}; }}; [[ $3 == tpu-vm ]] || echo ACTIVE')
    result = bench.run("tpu_pod.sh", "resume", "--", "--config=a", **POD, BUCKET="b", QUEUED=queued)
    assert [call[4] for call in bench.calls()] == expected
    assert (result.returncode == 0) == ("ssh" in expected)
    assert ("--config=a" in bench.calls()[-1][-3]) == ("ssh" in expected)
    for call in bench.calls():
        if call[4] == "delete":
            end = ["queued-resources", "delete", "mine", "--force"] if queued else ["tpu-vm", "delete", "mine"]
            assert call == [*TPUS, *end, "--quiet", *WHERE]


def test_tpu_delete_asks_first(bench):
    bench.run("tpu_pod.sh", "delete", **POD)
    bench.run("tpu_pod.sh", "delete", **POD, QUEUED="1")
    assert bench.calls() == [
        [*TPUS, "tpu-vm", "delete", "mine", *WHERE],
        [*TPUS, "queued-resources", "delete", "mine", "--force", *WHERE],
    ]


@pytest.mark.parametrize("action", ["create", "setup", "run", "tail", "resume", "stop", "delete"])
@pytest.mark.parametrize("environment", [{}, {"QUEUED": "1", "SPOT": "1"}], ids=["plain", "queued"])
def test_tpu_prints_what_it_would_do(bench, action, environment):
    arguments = ["--", "--config=a", "--x=it's"] if action in ("run", "resume") else []
    dry = bench.run("tpu_pod.sh", "--dry-run", action, *arguments, **POD, **environment, BUCKET="b")
    assert (dry.returncode, dry.stderr, bench.calls()) == (0, "", [])
    # What it prints does what it would have done.
    bench.answer("gcloud", "[[ $4 != describe ]] || { [[ $3 == tpu-vm ]] && echo PREEMPTED || echo ACTIVE; }")
    bench.run("tpu_pod.sh", action, *arguments, **POD, **environment, BUCKET="b")
    real = [call for call in bench.calls() if call[3:5] != ["queued-resources", "describe"]]
    (bench.record / "calls").unlink()
    subprocess.run(["bash", "-e", "-c", dry.stdout], env=bench.environment, check=True, cwd=LAUNCH.parent)
    assert bench.calls() == real


def test_tpu_needs_a_zone(bench):
    result = bench.run("tpu_pod.sh", "create")
    assert (result.returncode, bench.calls()) == (2, [])
    assert result.stderr.startswith("error: ZONE: must be set")


# gke.sh and gke.yaml

POD_0 = "jobset.sigs.k8s.io/jobset-name=hamjepa-{},batch.kubernetes.io/job-completion-index=0"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["apply", f"--filename={LAUNCH}/gke.yaml", "--selector=accelerator=tpu"]),
        (["submit", "gpu"], ["apply", f"--filename={LAUNCH}/gke.yaml", "--selector=accelerator=gpu"]),
        (["log"], ["logs", "--follow", "--tail=40", "--container=main", f"--selector={POD_0.format('tpu')}"]),
        (["stop", "gpu"], ["delete", "jobset", "hamjepa-gpu", "--cascade=foreground"]),
    ],
)
def test_gke(bench, arguments, expected):
    dry = bench.run("gke.sh", *arguments, "--dry-run")
    assert (dry.returncode, bench.calls()) == (0, [])
    assert shlex.split(dry.stdout) == ["kubectl", *expected]
    assert bench.run("gke.sh", *arguments).returncode == 0
    assert bench.calls() == [["kubectl", *expected]]


@pytest.mark.parametrize("accelerator", ["tpu", "gpu"])
def test_gke_manifest(accelerator):
    sets = {s["metadata"]["labels"]["accelerator"]: s for s in yaml.safe_load_all((LAUNCH / "gke.yaml").read_text())}
    assert sets.keys() == {"tpu", "gpu"}
    jobset = sets[accelerator]
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["metadata"]["name"] == f"hamjepa-{accelerator}"
    policy = jobset["spec"]["failurePolicy"]
    assert policy["restartStrategy"] == "BlockingRecreate"
    assert policy["maxRestarts"] > 0
    assert [(r["action"], r["onJobFailureReasons"]) for r in policy["rules"]] == [("FailJobSet", ["PodFailurePolicy"])]
    (workers,) = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    assert (job["completionMode"], job["backoffLimit"]) == ("Indexed", 0)
    assert job["parallelism"] == job["completions"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    (rule,) = job["podFailurePolicy"]["rules"]
    on_codes = {"containerName": container["name"], "operator": "In", "values": [1, 2, 3]}
    assert rule == {"action": "FailJob", "onExitCodes": on_codes}
    assert pod["restartPolicy"] == "Never"
    # config.checkpoint.grace_seconds is 25.
    assert pod["terminationGracePeriodSeconds"] >= 40
    assert container["command"] == ["python", "-m", "hamjepa_jax.main"]
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted.keys() == {volume["name"] for volume in pod["volumes"]}
    (workdir,) = [argument for argument in container["args"] if argument.startswith("--workdir=")]
    assert workdir.startswith(f"--workdir={mounted['bucket']}/")
    explicit = [argument for argument in container["args"] if not argument.startswith(("--config", "--workdir"))]
    if accelerator == "tpu":
        chips = container["resources"]["limits"]["google.com/tpu"]
        across, down = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
        assert across * down == chips * job["parallelism"]
        assert explicit == []
    else:
        pod_0 = f"{jobset['metadata']['name']}-{workers['name']}-0-0.{jobset['metadata']['name']}"
        assert explicit == [
            f"--coordinator_address={pod_0}:1234",
            f"--num_processes={job['parallelism']}",
            "--process_id=$(JOB_COMPLETION_INDEX)",
        ]
