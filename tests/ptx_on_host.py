"""Runs PTX on the CPU: what is shipped, each instruction as NVIDIA's manual defines it.

"Parallel Thread Execution ISA", version 9.0. A block's threads are numpy's lanes; those that are
furthest behind go on first, so that what parted at a branch meets again. Memory that nobody asked
for is not there, background copies arrive when they are waited for, and shared memory holds no
numbers before. It knows the instructions that our kernels consist of, and no others.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_KINDS = {
    "s32": np.int32, "u32": np.uint32, "b32": np.uint32, "s64": np.int64, "u64": np.uint64,
    "b64": np.uint64, "f32": np.float32, "pred": np.bool_,
}  # fmt: skip
_TWO: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add, "sub": operator.sub, "mul.lo": operator.mul, "and": operator.and_,
    "or": operator.or_, "xor": operator.xor, "max": np.maximum, "shl": operator.lshift,
    "shr": operator.rshift, "div": lambda a, b: np.trunc(a / b).astype(np.int32),
    "setp.lt": operator.lt, "setp.gt": operator.gt, "setp.ge": operator.ge,
    "setp.eq": operator.eq, "setp.ne": operator.ne,
}  # fmt: skip
_WIDE = {"mul.hi": 32, "mul.wide": 0}
BASE = 1 << 33  # of global memory: an address that lost its upper half is seen


class Memory:
    """Bytes, of which only those of :meth:`put` may be read and written."""

    def __init__(self) -> None:
        self.bytes = np.full(1 << 12, 0xFF, np.uint8)
        self.there = np.zeros(1 << 12, np.bool_)

    def put(self, data: Array) -> int:
        """A copy of ``data``, with nothing around it; its address."""
        start = len(self.bytes)
        room = -(-(data.nbytes + 256) // 4096) * 4096
        self.bytes = np.concatenate([self.bytes, np.full(room, 0xFF, np.uint8)])
        self.there = np.concatenate([self.there, np.arange(room) < data.nbytes])
        self.bytes[start : start + data.nbytes] = np.frombuffer(data.tobytes(), np.uint8)
        return BASE + start

    def get(self, address: int, like: Array) -> Array:
        start = address - BASE
        return self.bytes[start : start + like.nbytes].view(like.dtype).reshape(like.shape)


class Program:
    """One kernel of a PTX file."""

    def __init__(self, ptx: str, name: str) -> None:
        text = re.sub(r"//.*", "", ptx)
        found = re.search(
            rf"\.entry {name}\((.*?)\)(.*?)\n\{{\n(.*?)\n\}}\s*(?=\n\.visible|\Z)", text, re.S
        )
        assert found is not None, name
        self.parameters = re.findall(r"\.param \.\w+ (\w+)", found[1])
        self.code: list[tuple[str, str, list[str]]] = []
        self.labels: dict[str, int] = {}
        body = re.sub(r"^\s*\{(\.reg.*)\}$", r"\1", found[3], flags=re.M)  # of inline assembly
        for statement in re.split(r"[;\n]", re.sub(r",\s*\n\s*", ", ", body)):
            line = statement.strip()
            if line.endswith(":"):
                self.labels[line[:-1]] = len(self.code)
            elif line and not line.startswith("."):
                guard, _, rest = line.partition(" ") if line[0] == "@" else ("", "", line)
                opcode, _, operands = rest.strip().partition(" ")
                parts = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", operands)
                self.code.append((guard, opcode.strip(), parts))

    def run(
        self, memory: Memory, grid: int, threads: int, shared: int, arguments: list[int]
    ) -> None:
        given = dict(zip(self.parameters, arguments, strict=True))
        for block in range(grid):
            _Block(self, memory, threads, shared, given, block, grid).run()


class _Block:
    def __init__(
        self, program: Program, memory: Memory, threads: int, shared: int, given: dict[str, int],
        block: int, grid: int,
    ) -> None:  # fmt: skip
        self.program, self.memory, self.threads, self.given = program, memory, threads, given
        self.shared = np.full(shared, 0xFF, np.uint8)
        self.at = np.zeros(threads, np.int64)
        self.waiting = np.zeros(threads, np.bool_)
        self.registers: dict[str, Array] = {}
        self.names = {
            "%tid.x": np.arange(threads), "%ctaid.x": np.full(threads, block),
            "%nctaid.x": np.full(threads, grid), "shared": np.zeros(threads, np.int64),
        }  # fmt: skip
        self.copies: list[tuple[Array, Array, Array, Array]] = []

    def run(self) -> None:
        code = self.program.code
        while (self.at < len(code)).any():
            ready = ~self.waiting & (self.at < len(code))
            if not ready.any():  # all are at the barrier
                assert self.waiting.all()
                self.waiting[:] = False
                self.at += 1
                continue
            here = int(self.at[ready].min())
            lanes = np.flatnonzero(ready & (self.at == here))
            guard, opcode, operands = code[here]
            taken = lanes
            if guard:
                holds = self.registers[guard.lstrip("@!")][lanes] != guard.startswith("@!")
                taken = lanes[holds]
            if opcode == "bar.sync":
                self.waiting[taken] = True
                continue
            self.at[lanes] += 1
            if opcode in ("bra", "bra.uni"):
                self.at[taken] = self.program.labels[operands[0]]
            elif opcode == "ret":
                self.at[taken] = len(code)
            elif len(taken):
                self.step(opcode, operands, taken)

    def value(self, operand: str, lanes: Array, kind: Any) -> Array:
        if operand in self.registers:
            return self.registers[operand][lanes].view(kind)
        if operand in self.names:
            return self.names[operand][lanes].astype(kind)
        if operand.startswith("0f"):
            return np.full(len(lanes), int(operand[2:], 16), np.uint32).view(np.float32)
        return np.full(len(lanes), int(operand, 0)).astype(kind)

    def set(self, name: str, lanes: Array, value: Array) -> None:
        if name not in self.registers:
            self.registers[name] = np.zeros(self.threads, value.dtype)
        held = self.registers[name]
        held[lanes] = value.view(held.dtype)

    def address(self, operand: str, lanes: Array) -> Array:
        name, _, offset = operand[1:-1].partition("+")
        kind = np.uint64 if name.startswith("%rd") else np.uint32
        return self.value(name, lanes, kind).astype(np.int64) + int(offset or 0)

    def where(self, space: str, address: Array, size: int) -> tuple[Array, Array]:
        """The bytes that are meant, after a look whether they are there."""
        assert (address % size == 0).all(), "not aligned"
        if space == "shared":
            assert (address >= 0).all() and (address + size <= len(self.shared)).all()
            return self.shared, address[:, None] + np.arange(size)
        index = (address - BASE)[:, None] + np.arange(size)
        assert (index >= 0).all() and self.memory.there[index].all(), "beyond a buffer"
        return self.memory.bytes, index

    def words(self, space: str, address: Array, count: int) -> Array:
        held, index = self.where(space, address, 4 * count)
        return np.ascontiguousarray(held[index]).view(np.uint32)

    def step(self, opcode: str, operands: list[str], lanes: Array) -> None:
        family, _, last = opcode.rpartition(".")
        family = family.replace("mul.wide.", "mul.wide").replace(".rn", "")
        kind = _KINDS.get(last)
        if opcode.startswith("ld.param"):
            value = np.full(len(lanes), self.given[operands[1][1:-1]]).astype(kind)
            self.set(operands[0], lanes, value)
        elif opcode == "mov.b32" and operands[0].startswith("{"):
            halves = self.value(operands[1], lanes, np.uint32).view(np.uint16).reshape(-1, 2)
            for name, half in zip(_list(operands[0]), halves.T, strict=True):
                self.set(name, lanes, half.copy())
        elif family in ("mov", "cvta.to.global"):
            self.set(operands[0], lanes, self.value(operands[1], lanes, kind))
        elif family in _TWO:
            a, b = (self.value(o, lanes, kind) for o in operands[1:])
            if family in ("shl", "shr"):  # whose amount has 32 bits
                b = self.value(operands[2], lanes, np.uint32).astype(kind)
            with np.errstate(over="ignore"):
                self.set(operands[0], lanes, np.asarray(_TWO[family](a, b)))
        elif family in _WIDE:
            a, b = (self.value(o, lanes, kind).astype(np.int64) for o in operands[1:])
            product = (a * b) >> _WIDE[family]
            self.set(
                operands[0], lanes, product.astype(np.int32) if family == "mul.hi" else product
            )
        elif family == "selp":
            a, b = (self.value(o, lanes, kind) for o in operands[1:3])
            self.set(operands[0], lanes, np.where(self.registers[operands[3]][lanes], a, b))
        elif opcode == "cvt.rn.f16x2.f32":
            high, low = (self.value(o, lanes, np.float32).astype(np.float16) for o in operands[1:])
            self.set(operands[0], lanes, np.stack([low, high], 1).view(np.uint32)[:, 0])
        elif opcode == "cvt.f32.f16":
            self.set(operands[0], lanes, self.value(operands[1], lanes, np.float16).astype("f4"))
        elif family.startswith("cvt."):
            self.set(
                operands[0], lanes, self.value(operands[1], lanes, kind).astype(_KINDS[family[4:]])
            )
        elif family.startswith(("ld.global", "ld.shared")):
            names = _list(operands[0])
            found = self.words(family[3:9], self.address(operands[1], lanes), len(names))
            for name, word in zip(names, found.T, strict=True):
                self.set(name, lanes, word.copy())
        elif family.startswith("st.global"):
            names = _list(operands[1])
            held, index = self.where("global", self.address(operands[0], lanes), 4 * len(names))
            word = np.stack([self.value(n, lanes, np.uint32) for n in names], 1)
            held[index] = word.view(np.uint8)
        elif opcode == "cp.async.cg.shared.global":
            to, source = (self.address(o, lanes) for o in operands[:2])
            assert operands[2] == "16"
            self.copies.append((lanes, to, source, self.value(operands[3], lanes, np.uint32)))
        elif opcode == "cp.async.wait_all":
            self.arrive(lanes)
        elif opcode.startswith("ldmatrix.sync.aligned.m8n8.x4.shared"):
            self.load_matrices(operands, _warps(lanes))
        elif opcode == "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32":
            self.multiply(operands, _warps(lanes))
        else:
            raise NotImplementedError(opcode)

    def arrive(self, lanes: Array) -> None:
        assert len(lanes) == self.threads
        for _, to, source, size in self.copies:
            held, index = self.where("shared", to, 16)
            held[index] = 0
            some = size == 16
            assert (some | (size == 0)).all()
            data, place = self.where("global", source[some], 16)
            held[index[some]] = data[place]
        self.copies.clear()

    def load_matrices(self, operands: list[str], lanes: Array) -> None:
        """Four of 8×8 halves: eight lanes name the rows of each, a lane gets two of a row."""
        rows = self.words("shared", self.address(operands[1], lanes), 4).reshape(-1, 4, 8, 4)
        for name, matrix in zip(_list(operands[0]), rows.transpose(1, 0, 2, 3), strict=True):
            self.set(name, lanes, matrix.reshape(-1).copy())

    def multiply(self, operands: list[str], lanes: Array) -> None:
        def halves(operand: str) -> Array:  # (warp, register, row of lanes, lane of four, half)
            words = [self.value(n, lanes, np.uint32) for n in _list(operand)]
            parts = np.stack([w.view(np.float16).reshape(-1, 8, 4, 2) for w in words], 1)
            return parts.astype(np.float32)

        a = halves(operands[1])  # registers: rows 0…7 and 8…15 of columns 0…7, then of 8…15
        left = a.reshape(-1, 2, 2, 8, 8).transpose(0, 2, 3, 1, 4).reshape(-1, 16, 16)
        right = halves(operands[2]).transpose(0, 1, 3, 4, 2).reshape(-1, 16, 8)
        product = (left @ right).reshape(-1, 2, 8, 4, 2).transpose(1, 4, 0, 2, 3)
        product = product.reshape(4, -1)
        for name, before, more in zip(_list(operands[0]), _list(operands[3]), product, strict=True):
            self.set(name, lanes, self.value(before, lanes, np.float32) + more)


def _list(operand: str) -> list[str]:
    return [part.strip() for part in operand.strip("{}").split(",")]


def _warps(lanes: Array) -> Array:
    """``lanes``, which must be whole warps."""
    assert len(lanes) % 32 == 0 and (lanes.reshape(-1, 32)[:, 0] % 32 == 0).all()
    assert (np.diff(lanes.reshape(-1, 32)) == 1).all()
    return lanes
