"""Reads a pickle's opcodes without obeying them: which are admitted, and whether the file holds what they declare."""

from __future__ import annotations

import pickle
import pickletools
import re
from dataclasses import dataclass

from amprenta_vectors.backends.simple.pickle_depth import TupleDepth

LONGEST_PLACE = 19
"""Digits of a place in the memo: more say no more, and a reader that cuts them short follows another place."""
LONGEST_NUMBER = 64
"""Bytes that a number may be written with; the longest ``repr`` of a float has 24."""

_WITHOUT_ARGUMENT = (
    pickle.MARK + pickle.NONE + pickle.NEWTRUE + pickle.NEWFALSE + pickle.EMPTY_LIST + pickle.EMPTY_DICT
    + pickle.EMPTY_TUPLE + pickle.LIST + pickle.DICT + pickle.TUPLE + pickle.TUPLE1 + pickle.TUPLE2 + pickle.TUPLE3
    + pickle.APPEND + pickle.APPENDS + pickle.SETITEM + pickle.SETITEMS + pickle.REDUCE + pickle.BUILD
    + pickle.MEMOIZE + pickle.STACK_GLOBAL + pickle.NEWOBJ
)  # fmt: skip

# A million numbers are skipped at the speed of the regular expression engine: runs of numbers of one length, with that
# length, and runs of numbers that are each appended to a list at once.
_RUNS = [
    (re.compile(rb"(?:%s)++" % one, re.DOTALL), size) for one, size in ((rb"G.{8}", 9), (rb"K.", 2), (rb"J.{4}", 5))
]
_SHORT_NUMBER = 21
"""Bytes of a number in digits that is less than 2^63: opcode, 18 digits and what ends it."""
_APPENDED = re.compile(rb"(?:(?:G.{8}|K.|M..|J.{4}|[FIL][^\n]{1,%d}\n)a)++" % LONGEST_NUMBER, re.DOTALL)
_NUMBER = re.compile(rb"M..|[FIL][^\n]{1,%d}\n" % LONGEST_NUMBER, re.DOTALL)

_COUNTED = {
    pickle.SHORT_BINUNICODE[0]: 1,
    pickle.BINUNICODE[0]: 4,
    pickle.BINUNICODE8[0]: 8,
    pickle.SHORT_BINBYTES[0]: 1,
    pickle.BINBYTES[0]: 4,
    pickle.BINBYTES8[0]: 8,
    pickle.BYTEARRAY8[0]: 8,
    pickle.LONG1[0]: 1,
    pickle.LONG4[0]: 4,
}
"""Opcodes followed by the length of their argument, and how many bytes that length takes."""
_LINES = {pickle.UNICODE[0]: 1, pickle.GLOBAL[0]: 2, pickle.GET[0]: 1, pickle.PUT[0]: 1}
"""Opcodes followed by lines, and how many."""
_NAMES = {ord(info.code): info.name for info in pickletools.opcodes}
_FIXED = {
    pickle.BINGET[0]: 1,
    pickle.BINPUT[0]: 1,
    pickle.LONG_BINGET[0]: 4,
    pickle.LONG_BINPUT[0]: 4,
    pickle.PROTO[0]: 1,
}


@dataclass(frozen=True)
class Scan:
    """How far the opcodes are admitted: up to ``end``.

    ``refusal`` says why no further; None if the pickle is admitted to its end.
    """

    end: int
    refusal: str | None


def scan(data: bytes) -> Scan:
    """Read every opcode of a pickle up to its STOP; nothing is built, called or allocated."""
    at, depth, frame_end = 0, TupleDepth(), 0
    while True:
        if at >= len(data):
            return Scan(at, "it is truncated: the file ends before the pickle does")
        after = _skip_numbers(data, at, depth)
        if after > at:
            at = after
            continue
        opcode = data[at]
        if opcode == pickle.STOP[0]:
            return Scan(at + 1, None)
        if opcode == pickle.FRAME[0]:
            if at < frame_end:
                return Scan(at, "it has a frame within a frame")
            frame_end = at + 9 + int.from_bytes(data[at + 1 : at + 9], "little")
        size, refusal = (1, None) if opcode in _WITHOUT_ARGUMENT else _measure(data, at, opcode)
        # Of a text only its start is passed on; a place in the memo is passed on whole.
        refusal = refusal or depth.follow(opcode, data[at + 1 : at + min(size, LONGEST_PLACE + 1)])
        if refusal is not None:
            return Scan(at, refusal)
        at += size


def _skip_numbers(data: bytes, at: int, depth: TupleDepth) -> int:
    """Return where the numbers that start at ``at`` end."""
    if data[at] not in b"GKJMFIL":
        return at
    appended = _APPENDED.match(data, at)
    if appended:
        return appended.end()
    for run, size in _RUNS:
        found = run.match(data, at)
        if found:
            depth.push((found.end() - at) // size)
            return found.end()
    number = _NUMBER.match(data, at)
    if number:
        is_short = data[at] in b"MF" or number.end() - at <= _SHORT_NUMBER
        depth.push_number(0 if is_short else LONGEST_NUMBER)
        return number.end()
    return at


def _measure(data: bytes, at: int, opcode: int) -> tuple[int, str | None]:
    """Return the bytes that the opcode at ``at`` takes with its argument, and why it is refused, or None."""
    if opcode in _LINES:
        return _measure_lines(data, at, opcode)
    if opcode == pickle.FRAME[0]:
        declared = int.from_bytes(data[at + 1 : at + 9], "little")
        return 9, _unless_held(data, at + 9, declared)
    if opcode in _FIXED:
        end = at + 1 + _FIXED[opcode]
        index = int.from_bytes(data[at + 1 : end], "little")
        if opcode == pickle.LONG_BINPUT[0] and index > at:
            return 0, f"it declares place {index:,} of a memo that can have {at:,}"
        return end - at, None if end <= len(data) else _unless_held(data, end, 0)
    if opcode in _COUNTED:
        start = at + 1 + _COUNTED[opcode]
        declared = int.from_bytes(data[at + 1 : start], "little")
        if opcode in (pickle.LONG1[0], pickle.LONG4[0]) and declared > LONGEST_NUMBER:
            return 0, f"it declares a number of {declared:,} bytes"
        return start + declared - at, _unless_held(data, start, declared)
    if opcode in b"GKMJFIL":
        return 0, f"it is truncated, or holds a number of more than {LONGEST_NUMBER} bytes"
    name = f"opcode {_NAMES[opcode]}" if opcode in _NAMES else f"byte {opcode}, which is no opcode"
    lines = data[at + 1 : at + 400].split(b"\n")
    if opcode == pickle.INST[0] and len(lines) > 2:
        name += f" of {lines[0].decode('utf-8', 'replace')}.{lines[1].decode('utf-8', 'replace')}"
    return 0, f"it tries {name}"


def _measure_lines(data: bytes, at: int, opcode: int) -> tuple[int, str | None]:
    end = at
    for _ in range(_LINES[opcode]):
        end = data.find(b"\n", end + 1)
        if end < 0:
            return 0, "it is truncated: the file ends within a line"
    if opcode in (pickle.GET[0], pickle.PUT[0]):
        place = data[at + 1 : end]
        named = place[:LONGEST_NUMBER].decode("utf-8", "replace")
        if not place.isdigit() or len(place) > LONGEST_PLACE:
            return 0, f"it is no sound pickle: place {named} of its memo"
        if opcode == pickle.PUT[0] and int(place) > at:
            return 0, f"it declares place {named} of a memo that can have {at:,}"
    return end + 1 - at, None


def _unless_held(data: bytes, start: int, declared: int) -> str | None:
    left = len(data) - start
    if declared <= left:
        return None
    return f"it is truncated, or declares more than there is: {declared:,} bytes where {max(left, 0):,} are left"
