"""Runs of the command line in processes that begin at once, because they are forked from one that has all imported."""

import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["processes", "hamjepa_jax.main", "hamjepa_jax.train", "hamjepa_jax.evaluation.run"])

# A training of so many steps, of which each takes a few milliseconds.
STEPS = 42
TINY = (
    "--mode=train",
    "--config.data.batch_size=64",
    "--config.model.widths=(8, 8)",
    "--config.model.token_d_f=4",
    "--config.predictor.hidden_dim=8",
    "--config.optimizer.warmup_epochs=0",
    "--config.train.epochs=2",
    "--config.log.every_steps=1",
)
EVERY_STEP = "--config.checkpoint.every_steps=1"


def _run(arguments: list[str], stdout: Path, stderr: Path, devices: int, max_file_size: int | None = None) -> None:
    for number, path in ((1, stdout), (2, stderr)):
        with path.open("ab") as file:
            os.dup2(file.fileno(), number)
    # As a shell leaves them.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
    if max_file_size is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_size, max_file_size))
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    from hamjepa_jax.main import main

    # The fields of the config become flags where they are seen there.
    sys.argv = ["main", *arguments]
    sys.exit(main(sys.argv))


class Run:
    """One run of `python -m hamjepa_jax.main`, in one or several processes."""

    def __init__(
        self,
        workdir: Path,
        *arguments: str,
        config: str = "configs/digits.py",
        devices: int = 1,
        processes: int = 1,
        max_file_size: int | None = None,
    ):
        """Starts it; what it says is appended to WORKDIR.log, where `output` finds it."""
        self.workdir, self.log = workdir, workdir.with_suffix(".log")
        self._log_begins = self.log.stat().st_size if self.log.exists() else 0
        arguments = [f"--config={config}", f"--workdir={workdir}", *TINY, *arguments]
        address = f"127.0.0.1:{free_port()}"
        self.processes = []
        for number in range(processes):
            several = [f"--coordinator_address={address}", f"--num_processes={processes}", f"--process_id={number}"]
            call = (arguments + several * (processes > 1), self.log, self.log, devices, max_file_size)
            self.processes.append(FORKSERVER.Process(target=_run, args=call))
            self.processes[-1].start()

    def wait(self, timeout: float = 120) -> list[int]:
        """The exit codes, negative for a signal; ends what takes longer than the timeout."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
                raise TimeoutError(self.output())
        return [process.exitcode for process in self.processes]

    def wait_until(self, condition, timeout: float = 120) -> None:
        """Waits for a condition while the run is going on."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline or not all(process.is_alive() for process in self.processes):
                raise TimeoutError(self.output())
            time.sleep(0.002)

    def output(self) -> str:
        """What the run has said."""
        return self.log.read_bytes()[self._log_begins :].decode() if self.log.exists() else ""


def outcome_of(*arguments: str, directory: Path) -> tuple[int, str, str]:
    """The exit code of a command line, and what it wrote to stdout and stderr, which are kept in a directory."""
    paths = directory / "stdout", directory / "stderr"
    process = FORKSERVER.Process(target=_run, args=(list(arguments), *paths, 1))
    process.start()
    process.join(120)
    if process.is_alive():
        process.kill()
        raise TimeoutError(*(path.read_text() for path in paths))
    return process.exitcode, *(path.read_text() for path in paths)


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
