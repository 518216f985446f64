"""How deeply the tuples of a pickle nest and what its keys are, told from its opcodes before anything is built.

Python hashes a key that is a tuple by calling itself for each tuple within, without a limit: a hundred thousand nested
tuples end the process. A tuple that has another many times over is hashed as often, and a few hundred bytes of those
take for ever; so no tuple is a key. Nor is a number of many bytes: any number of those can have one hash.
"""

from __future__ import annotations

import pickle

DEEPEST = 16
"""Levels of nested tuples; numpy's pickles have 2."""

LONGEST_KEY = 8
"""Bytes of a number that may be a key."""
_LARGE = -1
"""The entry of a longer number. Python takes a number modulo 2^61 - 1 for its hash."""

_PUSHES = (
    pickle.NONE + pickle.NEWTRUE + pickle.NEWFALSE + pickle.EMPTY_LIST + pickle.EMPTY_DICT + pickle.EMPTY_TUPLE
    + pickle.SHORT_BINUNICODE + pickle.BINUNICODE + pickle.BINUNICODE8 + pickle.UNICODE + pickle.GLOBAL
    + pickle.SHORT_BINBYTES + pickle.BINBYTES + pickle.BINBYTES8 + pickle.BYTEARRAY8
)  # fmt: skip
_LONGS = {pickle.LONG1[0]: 1, pickle.LONG4[0]: 4}
"""Numbers that begin with how many bytes they take, by the bytes that say so."""
_TAKES = {pickle.TUPLE1[0]: 1, pickle.TUPLE2[0]: 2, pickle.TUPLE3[0]: 3}
# How many entries an opcode takes from the stack, by whether it leaves another there, which is never a tuple.
_REPLACES = {pickle.REDUCE[0]: 2, pickle.STACK_GLOBAL[0]: 2, pickle.NEWOBJ[0]: 2}
_DROPS = {pickle.BUILD[0]: 1, pickle.APPEND[0]: 1, pickle.SETITEM[0]: 2}
_TO_MARK = pickle.LIST + pickle.DICT
_DROPS_TO_MARK = pickle.APPENDS + pickle.SETITEMS
_GETS = pickle.BINGET + pickle.LONG_BINGET + pickle.GET
_PUTS = pickle.BINPUT + pickle.LONG_BINPUT + pickle.PUT


class TupleDepth:
    """Follows a pickle's stack; each entry is the depth of tuples in that value, 0 for a value that is no tuple."""

    def __init__(self) -> None:
        self._stack: list[int] = []
        self._marks: list[int] = []
        """The height of the stack at each mark."""
        self._memo: dict[int, int] = {}
        self._puts = self._memoized = 0
        self._odd_key: str | None = None

    def push(self, count: int) -> None:
        """Push ``count`` numbers."""
        self._stack += [0] * count

    def push_number(self, size: int) -> None:
        """Push a whole number that takes so many bytes."""
        self._stack.append(_LARGE if size > LONGEST_KEY else 0)

    def follow(self, opcode: int, argument: bytes) -> str | None:
        """Follow one opcode; return why it is refused, or None.

        A pickle that takes from the stack or memo what is not there is refused too.
        """
        try:
            self._follow(opcode, argument)
        except (IndexError, ValueError):
            return "it is no sound pickle: it takes what is not there"
        if self._stack and self._stack[-1] > DEEPEST:
            return f"it has more than {DEEPEST} tuples in one another"
        if self._odd_key is not None:
            return self._odd_key
        # The place that MEMOIZE writes to is known only if no other opcode writes to the memo.
        return "it numbers its memo in two ways" if self._puts and self._memoized else None

    def _follow(self, opcode: int, argument: bytes) -> None:
        stack = self._stack
        if opcode in _LONGS:
            self.push_number(int.from_bytes(argument[: _LONGS[opcode]], "little"))
        elif opcode in _PUSHES:
            stack.append(0)
        elif opcode in _TAKES:
            self._make_tuple(self._take(_TAKES[opcode]))
        elif opcode == pickle.MARK[0]:
            self._marks.append(len(stack))
        elif opcode == pickle.TUPLE[0]:
            self._make_tuple(self._take_to_mark())
        elif opcode in _REPLACES:
            self._take(_REPLACES[opcode])
            stack.append(0)
        elif opcode in _DROPS:
            taken = self._take(_DROPS[opcode])
            if opcode == pickle.SETITEM[0]:
                self._check_keys(taken)
        elif opcode in _TO_MARK:
            taken = self._take_to_mark()
            if opcode == pickle.DICT[0]:
                self._check_keys(taken)
            stack.append(0)
        elif opcode in _DROPS_TO_MARK:
            taken = self._take_to_mark()
            if opcode == pickle.SETITEMS[0]:
                self._check_keys(taken)
        elif opcode in _GETS:
            stack.append(self._memo.get(_to_place(opcode, argument), 0))
        elif opcode in _PUTS:
            self._puts += 1
            self._memo[_to_place(opcode, argument)] = stack[-1]
        elif opcode == pickle.MEMOIZE[0]:
            if stack[-1]:
                self._memo[self._memoized] = stack[-1]
            self._memoized += 1

    def _make_tuple(self, entries: list[int]) -> None:
        self._stack.append(1 + max([0, *entries]))

    def _check_keys(self, entries: list[int]) -> None:
        keys = entries[::2]
        if any(key > 0 for key in keys):
            self._odd_key = "it has a tuple as a key"
        elif _LARGE in keys:
            self._odd_key = f"it has a number of more than {LONGEST_KEY} bytes as a key"

    def _take(self, count: int) -> list[int]:
        return self._take_from(len(self._stack) - count, self._marks[-1] if self._marks else 0)

    def _take_to_mark(self) -> list[int]:
        return self._take_from(self._marks.pop(), 0)

    def _take_from(self, place: int, lowest: int) -> list[int]:
        if place < lowest:
            raise IndexError
        taken = self._stack[place:]
        del self._stack[place:]
        return taken


def _to_place(opcode: int, argument: bytes) -> int:
    return int(argument) if opcode in (pickle.GET[0], pickle.PUT[0]) else int.from_bytes(argument, "little")
