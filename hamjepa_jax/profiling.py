"""Where the time of some training steps goes: a trace of them, and a table of the operations that take the most."""

import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from hamjepa_jax import distributed
from hamjepa_jax.atomic_files import replacing, writing
from hamjepa_jax.errors import UserError

# Operations in the table of them, and kinds in the table of these.
COSTLIEST, COSTLIEST_KINDS = 20, 10


class Operation(NamedTuple):
    """An operation of a compiled program, in all the steps that were traced.

    Attributes:
        name: what the compiler calls it.
        count: how often it ran.
        seconds: time spent in it and in nothing that it called, on all devices or threads together.
    """

    name: str
    count: int
    seconds: float


def parse_steps(text: str) -> range | None:
    """The steps that are to be traced.

    Args:
        text: START:STOP, or nothing: config.profile.

    Returns:
        The steps from START up to but without STOP, or None.

    Raises:
        UserError: if it is anything else.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    steps = range(*map(int, match.groups())) if match else range(0)
    if not steps:
        raise UserError(
            "config.profile: must be START:STOP, the steps from START up to but without STOP, such as 10:13, "
            f"got {text!r}"
        )
    return steps


class StepTrace:
    """Traces some steps of a run; a context manager that the loop tells which step comes next."""

    def __init__(self, steps: range | None, directory: Path, report: Callable[[str], None]):
        """Keeps the arguments; nothing is traced yet.

        Args:
            steps: the steps, or None.
            directory: where traces go, each in a folder of its own below it.
            report: told in a line what was written.
        """
        self._steps, self._directory, self._report = steps or range(0), directory, report
        self._first: int | None = None
        self._next = 0
        self._folder = directory

    def __enter__(self) -> "StepTrace":
        """Itself."""
        return self

    def before(self, steps: range, state: Any) -> None:
        """Starts the trace if some of these steps are to be in it, or ends it if none of them is.

        Args:
            steps: the steps that are about to be dispatched, all at once.
            state: what the step before them returns, which is waited for at either end.

        Raises:
            StorageError: if the trace cannot be written.
        """
        if self._first is None and steps.start < self._steps.stop and self._steps.start < steps.stop:
            jax.block_until_ready(state)
            with writing(self._directory):
                self._directory.mkdir(parents=True, exist_ok=True)
            options = jax.profiler.ProfileOptions()
            # Python's own calls would slow the host down, and crowd the trace.
            options.python_tracer_level = 0
            # jax names files after the host: processes that share one, or a file system, would write into each other's.
            options.session_id = f"{time.strftime('%Y_%m_%d_%H_%M_%S')}_process_{jax.process_index()}"
            self._folder = self._directory / "plugins" / "profile" / options.session_id
            jax.profiler.start_trace(self._directory, profiler_options=options)
            self._first = steps.start
        elif steps.start >= self._steps.stop:
            self.end(state)
        self._next = steps.stop

    def end(self, state: Any) -> None:
        """Ends the trace, if it is going on.

        Args:
            state: what the last step returns.

        Raises:
            StorageError: if the trace cannot be written.
        """
        if self._first is not None:
            jax.block_until_ready(state)
            self._end()

    def __exit__(self, *exception: object) -> None:
        """Ends the trace if it is still going on, because something has failed."""
        if self._first is not None:
            self._end()

    def _end(self) -> None:
        traced, self._first, self._steps = range(self._first, self._next), None, range(0)
        with writing(self._directory):
            try:
                jax.profiler.stop_trace()
            except jax.errors.JaxRuntimeError as error:
                raise OSError(str(error)) from None
        if not distributed.is_primary():
            return
        table = self._folder / "operations.md"
        with replacing(table) as replacement:
            replacement.write_text(markdown_table(costliest(self._folder.glob("*.xplane.pb")), steps=traced))
        self._report(f"written: {table}, and beside it the trace, for ui.perfetto.dev (trace.json.gz) or xprof")


def costliest(files: Iterable[Path]) -> list[Operation]:
    """What took how long in a trace.

    Args:
        files: what jax has written of it, HOST.xplane.pb.

    Returns:
        The operations, the costliest first.
    """
    counts, nanoseconds = {}, {}
    for file in files:
        for events in _operations_by_line(jax.profiler.ProfileData.from_file(str(file)).planes):
            for name, own in _own_times(events):
                counts[name] = counts.get(name, 0) + 1
                nanoseconds[name] = nanoseconds.get(name, 0.0) + own
    found = (Operation(name, counts[name], 1e-9 * nanoseconds[name]) for name in counts)
    return sorted(found, key=lambda operation: -operation.seconds)


def _operations_by_line(planes: Iterable[Any]) -> list[list[tuple[str, Any]]]:
    """The named operations of every line: of accelerators, or of the host where these have none."""
    of_devices, of_host = [], []
    for plane in planes:
        lines = list(plane.lines)
        # The same operations may lie on the lines of streams too, and what launches them on those of the host.
        for line in [line for line in lines if line.name == "XLA Ops"] or lines:
            operations = [(_operation(event, line.name), event) for event in line.events]
            named = [(name, event) for name, event in operations if name]
            (of_devices if plane.name.startswith("/device:") else of_host).append(named)
    return of_devices if any(of_devices) else of_host


def _operation(event: Any, line_name: str) -> str | None:
    """The name of an operation of a compiled program; None for all else that is traced."""
    name = dict(event.stats).get("hlo_op")
    return str(name) if name else event.name.partition(" = ")[0].lstrip("%") if line_name == "XLA Ops" else None


def _own_times(events: Iterable[tuple[str, Any]]) -> Iterable[tuple[str, float]]:
    """Nanoseconds of each event of a line without those of the events in it, such as the body of a loop."""
    enclosing: list[list[Any]] = []
    for name, event in sorted(events, key=lambda named: (named[1].start_ns, -named[1].duration_ns)):
        while enclosing and enclosing[-1][1] <= event.start_ns:
            ended, _, own = enclosing.pop()
            yield ended, own
        if enclosing:
            enclosing[-1][2] -= event.duration_ns
        enclosing.append([name, event.start_ns + event.duration_ns, event.duration_ns])
    for name, _, own in enclosing:
        yield name, own


def markdown_table(operations: list[Operation], *, steps: range) -> str:
    """The costliest operations, and kinds of them, as Markdown tables.

    Args:
        operations: what `costliest` returned.
        steps: the steps that were traced.

    Returns:
        The tables, with a line about what they hold.
    """
    total = sum(operation.seconds for operation in operations)
    by_kind: dict[str, Operation] = {}
    for name, count, seconds in operations:
        kind = re.sub(r"([._]\d+)+$", "", name)
        _, former_count, former_seconds = by_kind.get(kind, Operation(kind, 0, 0.0))
        by_kind[kind] = Operation(kind, former_count + count, former_seconds + seconds)
    kinds = sorted(by_kind.values(), key=lambda operation: -operation.seconds)
    lines = [
        f"Steps {steps.start} to {steps.stop - 1}: {1e3 * total / len(steps):.1f} ms of operations a step, on all "
        "devices or threads together.",
        "",
        *_rows("kind of operation", kinds[:COSTLIEST_KINDS], total, len(steps)),
        "",
        f"The costliest of {len(operations)} operations:",
        "",
        *_rows("operation", operations[:COSTLIEST], total, len(steps)),
    ]
    return "\n".join(lines) + "\n"


def _rows(heading: str, operations: list[Operation], total: float, num_steps: int) -> list[str]:
    """The lines of a table, with shares of the `total` in seconds."""
    lines = [f"| {heading} | times a step | ms a step | share |", "| --- | ---: | ---: | ---: |"]
    for name, count, seconds in operations:
        share = seconds / total if total else 0.0
        lines.append(f"| {name} | {count / num_steps:g} | {1e3 * seconds / num_steps:.2f} | {share:.1%} |")
    return lines
