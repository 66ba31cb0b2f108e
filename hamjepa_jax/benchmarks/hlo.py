"""Reads the collectives, what devices say to each other, out of the text of a compiled program."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Bits of an element, of the types whose names do not end with it.
BITS = {"pred": 8, "token": 0}

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) .*\{$")
# The second alternative is a tuple; its types may hold parentheses of their own, in layouts such as {1,0:T(8,128)}.
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>[^\s(]\S*|\(.*?\)) (?P<opcode>[a-z][\w\-]*)\((?P<rest>.*)$"
)
_ARRAY = re.compile(r"\b(?P<dtype>[a-z]+\d*[a-z\d]*)\[(?P<dims>[\d,]*)\]")
_CALLEES = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation|called_computations|branch_computations)="
    r"(?:%?(?P<one>[\w.\-]+)|\{(?P<many>[^}]*)\})"
)
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LIMIT = re.compile(r"%(?P<limit>[\w.\-]+)\), direction=LT")
_OP_NAME = re.compile(r'op_name="([^"]*)"')


class Array(NamedTuple):
    """An array that travels.

    Attributes:
        dtype: HLO's name of its type, such as `f32`.
        shape: its shape.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Its size."""
        digits = re.search(r"\d+", self.dtype)
        bits = BITS[self.dtype] if self.dtype in BITS else int(digits[0])
        return math.prod(self.shape) * bits // 8


class Collective(NamedTuple):
    """A collective operation.

    Attributes:
        kind: one of `KINDS`.
        results: the arrays that every device has afterwards; several where XLA has combined operations.
        times: how often it runs in the program, the product of the lengths of the loops around it.
        source: where in the traced program it comes from, or the first of the combined ones.
    """

    kind: str
    results: tuple[Array, ...]
    times: int
    source: str

    @property
    def num_bytes(self) -> int:
        """Bytes of its results, each time that it runs."""
        return sum(array.num_bytes for array in self.results)


class _Instruction(NamedTuple):
    name: str
    type: str
    opcode: str
    rest: str


def collectives(text: str) -> list[Collective]:
    """Finds the collectives of a compiled program, also those in loops, branches and other calls.

    Args:
        text: what `compiled.as_text()` returns.

    Returns:
        The collectives, in the order of the program; those that are started and awaited apart are counted once.

    Raises:
        ValueError: if a loop around a collective has no length that is known when it is compiled, or the text is not
            that of a program.
    """
    computations, entry = _computations(text)
    found: list[Collective] = []
    _collect(computations, entry, 1, found)
    return found


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    entry, current = None, None
    for line in text.splitlines():
        if not line.startswith(" "):
            header = _COMPUTATION.match(line)
            if header:
                current = computations.setdefault(header["name"], [])
                entry = header["name"] if header["entry"] else entry
        elif current is not None and (instruction := _INSTRUCTION.match(line)):
            current.append(_Instruction(*instruction.group("name", "type", "opcode", "rest")))
    if entry is None:
        raise ValueError("no entry computation in this text; it must be that of a compiled program")
    return computations, entry


def _collect(computations: dict[str, list[_Instruction]], name: str, times: int, found: list[Collective]) -> None:
    for instruction in computations[name]:
        kind = instruction.opcode.removesuffix("-start")
        if kind in KINDS:
            source = _OP_NAME.search(instruction.rest)
            arrays = _results(instruction, kind)
            found.append(Collective(kind, arrays, times, source[1] if source else ""))
            continue
        for callee in _callees(instruction, computations):
            inner: list[Collective] = []
            _collect(computations, callee, times, inner)
            if inner and instruction.opcode == "while":
                length = _trip_count(instruction, computations)
                if length is None:
                    raise ValueError(f"collectives in a loop of unknown length: {inner[0].source}")
                inner = [collective._replace(times=collective.times * length) for collective in inner]
            found += inner


def _trip_count(loop: _Instruction, computations: dict[str, list[_Instruction]]) -> int | None:
    """The length of a loop, written beside it or, for a counter that starts at 0, in its condition."""
    if written := _TRIP_COUNT.search(loop.rest):
        return int(written[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)[1]
    instructions = {instruction.name: instruction for instruction in computations[condition]}
    for instruction in instructions.values():
        limit = _LIMIT.search(instruction.rest) if instruction.opcode == "compare" else None
        if limit and (value := instructions.get(limit["limit"])) and value.opcode == "constant":
            return int(value.rest.partition(")")[0])
    return None


def _results(instruction: _Instruction, kind: str) -> tuple[Array, ...]:
    arrays = tuple(
        Array(array["dtype"], tuple(int(length) for length in array["dims"].split(",") if length))
        for array in _ARRAY.finditer(instruction.type)
    )
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        # Operands come before the results; some kinds have words of state behind them.
        operands = instruction.rest.partition("), ")[0].count("%")
        arrays = arrays[operands : 2 * operands]
    return arrays


def _callees(instruction: _Instruction, computations: dict[str, list[_Instruction]]) -> Iterator[str]:
    for callee in _CALLEES.finditer(instruction.rest):
        for name in [callee["one"]] if callee["one"] else callee["many"].split(","):
            if (name := name.strip().removeprefix("%")) in computations:
                yield name
