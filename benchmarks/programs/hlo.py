"""Compiled programs as XLA prints them: the bytes that they move, and their all-reduces."""

import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*-> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)$")
_ARRAY = re.compile(r"\b[a-z]+(\d*)\w*\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|\w+_computations?)=(\{[^}]*\}|%?[\w.-]+)")
# What moves nothing, or, on a TPU, moves to the chip's own memory ahead of time what is counted where
# it is used. Of conditionals and loops neither the branches nor the operands count: jbn's are not taken
# in the usual case.
_FREE = {
    *("parameter", "constant", "iota", "partition-id", "replica-id"),
    *("tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "conditional", "while"),
    *("copy-start", "copy-done", "slice-start", "slice-done", "async-done", "all-reduce-done"),
}
_ALL_REDUCES = ("all-reduce", "all-reduce-start")


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def called(self) -> list[str]:
        """The computations that it calls."""
        groups = _CALLED.findall(self.attributes)
        return [name for group in groups for name in re.findall(r"[\w.-]+", group)]


Program = dict[str, list[Instruction]]


def parse(text: str) -> Program:
    """The computations of a program by name; the one that is run is "ENTRY"."""
    program: Program = {}
    lines: list[Instruction] = []
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if head := _HEAD.match(line):
            lines = program["ENTRY" if head[1] else head[2]] = []
        elif found := _INSTRUCTION.match(line):
            name, shape, opcode, rest = found.groups()
            operands, _, attributes = rest.partition(")")
            names = re.findall(r"[\w.-]+", operands)
            lines.append(Instruction(name, shape, opcode, tuple(names), attributes))
    return program


def sizes(shape: str) -> list[int]:
    """Bytes of an array, or of each array of a tuple."""
    return [_size(bits, lengths) for bits, lengths, _ in _ARRAY.findall(shape)]


def _size(bits, lengths):
    return max(int(bits or 8) // 8, 1) * math.prod(map(int, filter(None, lengths.split(","))))


def _anywhere(shape):
    return sum(sizes(shape))


def _off_chip(shape):
    """Without what a TPU has in the memory of the chip."""
    found = _ARRAY.findall(shape)
    return sum(_size(bits, lengths) for bits, lengths, layout in found if "S(1)" not in layout)


def bytes_moved(program: Program, counted: Callable[[str], int] = _anywhere) -> int:
    """What the operations of a program write and read: each its results, and each operand once.

    An operand of which a fusion uses nothing but slices counts as those slices.
    """
    return sum(
        counted(line.shape) + sum(_read(program, line, shapes, counted))
        for line, shapes in _run(program, "ENTRY")
        if line.opcode not in _FREE and "ConcatBitcast" not in line.attributes
    )


def bytes_off_chip(program: Program) -> int:
    """The same without what is in the memory of a TPU's chip, with the copies there and back."""
    copies = ("copy-start", "slice-start")
    copied = (min(sizes(i.shape)[:2]) for i, _ in _run(program, "ENTRY") if i.opcode in copies)
    return bytes_moved(program, _off_chip) + sum(copied)


def _run(program: Program, name: str) -> Iterator[tuple[Instruction, dict[str, str]]]:
    """The instructions of a computation and of those it calls, with the shapes of what they read."""
    shapes = {line.name: line.shape for line in program[name]}
    for line in program[name]:
        if line.opcode == "call":
            yield from (found for called in line.called for found in _run(program, called))
        else:
            yield line, shapes


def _read(program, line, shapes, counted):
    """Bytes read of each operand."""
    inside = program[line.called[0]] if line.opcode == "fusion" else []
    numbered = {int(i.operands[0]): i.name for i in inside if i.opcode == "parameter"}
    for number, operand in enumerate(line.operands):
        if operand in line.operands[:number] or operand not in shapes:
            continue
        uses = [i for i in inside if numbered[number] in i.operands]
        whole = counted(shapes[operand])
        if uses and all(use.opcode in ("slice", "dynamic-slice") for use in uses):
            yield min(whole, sum(_anywhere(use.shape) for use in uses))
        else:
            yield whole


def all_reduces(program: Program) -> tuple[int, int]:
    """How many are made: the fewest and the most by which branches are taken, loops run once."""
    return _count(program, min, "ENTRY"), _count(program, max, "ENTRY")


def _count(program, choose, name):
    total = 0
    for line in program[name]:
        if line.opcode in _ALL_REDUCES:
            total += 1
            continue
        runs = [_count(program, choose, called) for called in line.called]
        total += choose(runs, default=0) if line.opcode == "conditional" else sum(runs)
    return total
