"""Stand-ins for Python and for the tools of every service."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"

# Stands in for `python -m hamjepa_jax.main`. It does what $DO says for its number: "exit CODE", "wait" for a signal and
# then save, or "hang", whatever comes. It keeps its arguments, its environment and every signal.
FAKE_PYTHON = f"""#!{sys.executable} -SE
import os, signal, sys, time
number = [a.split("=")[1] for a in sys.argv if a.startswith("--process_id=")]
record = os.path.join(os.environ["RECORD"], number[0] if number else "0")
def note(kind, text):
    with open(record + "." + kind, "a") as file:
        file.write(text + chr(10))
for argument in sys.argv[1:]:
    note("arguments", argument)
note("environment", "".join(k + "=" + os.environ.get(k, "") + chr(10) for k in ("XLA_FLAGS", "CUDA_VISIBLE_DEVICES")))
plan = dict(item.split(":") for item in os.environ["DO"].split(","))
what, _, code = plan.get(number[0] if number else "0", "exit 0").partition(" ")
asked = []
def hear(number, frame):
    note("signals", signal.Signals(number).name)
    asked.append(number)
for s in (signal.SIGINT, signal.SIGTERM):
    note("dispositions", str(signal.getsignal(s)))
    signal.signal(s, hear)
note("input", os.readlink("/proc/self/fd/0"))
note("ready", str(os.getpid()))
print("process", number, "prints")
if what == "exit":
    sys.exit(int(code))
while not asked or what == "hang":
    time.sleep(0.01)
time.sleep(0.4)
note("saved", "yes")
sys.exit(128 + asked[0])
"""

# Stands in for a tool of a service: keeps its arguments, and does what $ANSWERS/NAME says, if there is such a file.
FAKE_TOOL = """#!/usr/bin/env bash
printf '%s\\0' "${0##*/}" "$@" >>"$RECORD/calls"
printf '\\n' >>"$RECORD/calls"
[[ ! -e $ANSWERS/${0##*/} ]] || source "$ANSWERS/${0##*/}"
"""


class Bench:
    """A directory of stand-ins, what they were called with, and what they answer."""

    def __init__(self, path):
        self.record, self.bin, self.answers = path / "record", path / "bin", path / "answers"
        for directory in (self.record, self.bin, self.answers):
            directory.mkdir()
        # No other tool of the machine can be reached by accident.
        for tool in ("gcloud", "kubectl", "srun", "scontrol", "squeue", "nvidia-smi"):
            self.write(self.bin / tool, FAKE_TOOL)
        self.write(self.bin / "python", FAKE_PYTHON)
        self.environment = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HOME": str(path),
            "TMPDIR": str(path),
            "RECORD": str(self.record),
            "ANSWERS": str(self.answers),
            "DO": "0:exit 0",
        }

    @staticmethod
    def write(path, text):
        path.write_text(text)
        path.chmod(0o755)

    def answer(self, tool, script):
        (self.answers / tool).write_text(script)

    def run(self, script, *arguments, **environment):
        return subprocess.run(
            ["bash", LAUNCH / script, *arguments],
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=30,
        )

    def start(self, script, *arguments, **environment):
        return subprocess.Popen(
            ["bash", LAUNCH / script, *arguments],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def calls(self):
        path = self.record / "calls"
        return [line.rstrip("\0").split("\0") for line in path.read_text().split("\0\n")[:-1]] if path.exists() else []

    def lines(self, kind):
        """What the processes noted, by their number."""
        return {int(p.stem): p.read_text().split("\n")[:-1] for p in self.record.glob(f"*.{kind}")}

    def wait_for(self, kind, count):
        deadline = time.monotonic() + 10
        while len(self.lines(kind)) < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    for (pid,) in bench.lines("ready").values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
