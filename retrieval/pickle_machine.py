"""The harmless part of the pickle language, run from memory that is never copied.

A pickle is a program. This machine knows only the instructions that data need (numbers, text, bytes, tuples, lists,
dictionaries) and calls only functions that its owner handed in, so no pickle can make it do anything else. The entries
of the outermost dictionary are handed out as soon as they are read and are then forgotten, so a dictionary of any size
needs little memory. `retrieval/unpickle.py` builds tensors on top of it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from utils.errors import DataError

KEPT_MEMO = 4096  # objects remembered for later reference; what entries share turns up in the very first of them
_DAMAGE = (IndexError, KeyError, TypeError, ValueError, AttributeError, struct.error, OverflowError)
_MARK = object()


class ForgottenError(LookupError):
    """The pickle refers back to an object that was already forgotten."""


class PickleMachine:
    """Reads one pickle.

    Args:
        data: bytes that hold the pickle.
        position: where the pickle begins; after `run` or `iterate`, where it ended.
        source: name for messages, usually the file.
        functions: (module, name) -> what a pickle gets when it asks for that name; nothing else exists for it.
        persistent: called with the tuple of a persistent reference (storages of `torch.save`).
        forgets: drop entries that were handed out; needs little memory, but they cannot be referred to again.
    """

    def __init__(
        self,
        data: memoryview,
        *,
        position: int = 0,
        source: str = "pickle",
        functions: Mapping[tuple[str, str], Any] | None = None,
        persistent: Callable[[Any], Any] | None = None,
        forgets: bool = True,
    ) -> None:
        self.data, self.position, self.source = data, position, source
        self.functions, self.persistent, self.forgets = functions or {}, persistent, forgets
        self.streams = False
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.memo_size = 0
        self.ready: list[Any] = []  # names and values in turn, of the outermost dictionary

    def run(self) -> Any:
        """The object in the pickle, as a whole; bytes are views of the data.

        Raises:
            DataError: if the pickle is damaged, or asks for anything but plain data and the given functions.
        """
        for _ in self._steps():
            pass
        return self.stack[-1]

    def iterate(self) -> Iterator[list[Any]]:
        """The entries of the outermost dictionary, a batch at a time: [name, value, name, value, ...].

        Raises:
            DataError: as `run`; also if the outermost object is not a dictionary.
            ForgottenError: if an entry refers to one that was handed out long ago; start again with `forgets=False`.
        """
        self.streams = True
        yield from self._steps()
        if not self.stack or type(self.stack[-1]) is not dict:
            raise DataError(f"{self.source}: holds no dictionary of names and tensors, but something else.")

    def _steps(self) -> Iterator[list[Any]]:
        data, handlers = self.data, HANDLERS
        try:
            while True:
                code = data[self.position]
                self.position += 1
                if code == 0x94:  # MEMOIZE, by far the most frequent: no call
                    self.memo[self.memo_size] = self.stack[-1]
                    self.memo_size += 1
                    continue
                if code == 0x2E:  # STOP
                    if not self.stack:
                        raise IndexError("nothing to return")
                    return
                handlers[code](self)
                if self.ready:
                    batch, self.ready = self.ready, []
                    yield batch
                    self._forget()
        except ForgottenError:
            raise
        except _DAMAGE as error:
            raise DataError(
                f"{self.source}: not a readable pickle at byte {self.position} of {len(data)} ({error}). "
                f"It may be cut off or damaged: make or download it again."
            ) from error

    def _forget(self) -> None:
        """Keep what the first entries brought (functions, words); the rest are used entries."""
        if self.forgets and len(self.memo) > 2 * KEPT_MEMO:
            self.memo = {place: value for place, value in self.memo.items() if place < KEPT_MEMO}

    # Reading

    def take(self, num_bytes: int) -> memoryview:
        """The next bytes, as a view."""
        chunk = self.data[self.position : self.position + num_bytes]
        if len(chunk) != num_bytes:
            raise ValueError(f"{num_bytes} bytes expected, {len(chunk)} left")
        self.position += num_bytes
        return chunk

    def number(self, num_bytes: int) -> int:
        """The next bytes as an unsigned number."""
        return int.from_bytes(self.take(num_bytes), "little")

    def line(self) -> str:
        """Text up to the next line feed."""
        window = bytes(self.data[self.position : self.position + 512])
        end = window.index(b"\n")
        self.position += end + 1
        return window[:end].decode()

    def popped_mark(self) -> list[Any]:
        """Everything above the last mark, which goes too."""
        stack = self.stack
        place = len(stack) - 1
        while stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise IndexError("no mark")
        items = stack[place + 1 :]
        del stack[place:]
        return items

    # Building

    def find(self, module: str, name: str) -> Any:
        """What the name stands for here.

        Raises:
            DataError: if the name is not among the given functions.
        """
        try:
            return self.functions[module, name]
        except KeyError:
            raise DataError(
                f"{self.source}: asks Python for '{module}.{name}', which is no part of a file of tensors. "
                f"The file is refused, and nothing in it was executed. Do not load it with other programs either; "
                f"get the file from its authors again."
            ) from None

    def call(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if type(arguments) is not tuple:
            raise TypeError("arguments are no tuple")
        self.stack[-1] = function(*arguments)

    def store(self, items: list[Any]) -> None:
        """Put names and values into the dictionary on top of the stack, or hand them out if it is the outermost."""
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise TypeError("entries without a dictionary")
        if self.streams and len(self.stack) == 1:
            self.ready = items
        else:
            target.update(zip(items[::2], items[1::2], strict=True))

    def remember(self, place: int) -> None:
        self.memo[place] = self.stack[-1]
        self.memo_size += 1

    def recall(self, place: int) -> None:
        if place not in self.memo and place < self.memo_size and self.streams and self.forgets:
            raise ForgottenError(f"object {place}")
        self.stack.append(self.memo[place])


# One function per instruction, by its byte. Those on the path of every tensor are written out for speed.


def _short_text(machine: PickleMachine) -> None:
    begin = machine.position + 1
    end = begin + machine.data[machine.position]
    if end > len(machine.data):
        raise ValueError("cut off in a text")
    machine.position = end
    machine.stack.append(str(machine.data[begin:end], "utf-8"))


def _small_number(machine: PickleMachine) -> None:
    machine.stack.append(machine.data[machine.position])
    machine.position += 1


def _get(machine: PickleMachine) -> None:
    place = machine.data[machine.position]
    machine.position += 1
    machine.recall(place)


def _tuple_of_one(machine: PickleMachine) -> None:
    machine.stack[-1] = (machine.stack[-1],)


def _tuple_of(count: int) -> Callable[[PickleMachine], None]:
    def build(machine: PickleMachine) -> None:
        if len(machine.stack) < count:
            raise IndexError("too few values for a tuple")
        machine.stack[-count:] = [tuple(machine.stack[-count:])]

    return build


def _push(value: Any) -> Callable[[PickleMachine], None]:
    return lambda machine: machine.stack.append(value)


def _text(width: int) -> Callable[[PickleMachine], None]:
    return lambda machine: machine.stack.append(str(machine.take(machine.number(width)), "utf-8"))


def _bytes(width: int) -> Callable[[PickleMachine], None]:
    return lambda machine: machine.stack.append(machine.take(machine.number(width)))


def _unsigned(width: int) -> Callable[[PickleMachine], None]:
    return lambda machine: machine.stack.append(machine.number(width))


def _signed(machine: PickleMachine) -> None:
    machine.stack.append(int.from_bytes(machine.take(4), "little", signed=True))


def _long(machine: PickleMachine) -> None:
    machine.stack.append(int.from_bytes(machine.take(machine.number(1)), "little", signed=True))


def _float(machine: PickleMachine) -> None:
    machine.stack.append(struct.unpack(">d", machine.take(8))[0])


def _global(machine: PickleMachine) -> None:
    module = machine.line()
    machine.stack.append(machine.find(module, machine.line()))


def _stack_global(machine: PickleMachine) -> None:
    name = machine.stack.pop()
    machine.stack[-1] = machine.find(machine.stack[-1], name)


def _append(machine: PickleMachine) -> None:
    item = machine.stack.pop()
    _extend(machine, [item])


def _extend(machine: PickleMachine, items: list[Any]) -> None:
    if type(machine.stack[-1]) is not list:
        raise TypeError("items without a list")
    machine.stack[-1].extend(items)


def _set_item(machine: PickleMachine) -> None:
    value = machine.stack.pop()
    machine.store([machine.stack.pop(), value])


def _persistent(machine: PickleMachine) -> None:
    if machine.persistent is None:
        raise TypeError("a reference to something outside the pickle")
    machine.stack[-1] = machine.persistent(machine.stack[-1])


def _unknown(machine: PickleMachine) -> None:
    code = machine.data[machine.position - 1]
    raise DataError(
        f"{machine.source}: uses the pickle instruction {bytes([code])!r} at byte {machine.position - 1}, which a file "
        f"of tensors does not need. The file is refused, and nothing in it was executed."
    )


HANDLERS: list[Callable[[PickleMachine], None]] = [_unknown] * 256
_BY_NAME: dict[bytes, Callable[[PickleMachine], None]] = {
    b"\x80": lambda machine: machine.number(1) and None,  # PROTO
    b"\x95": lambda machine: machine.number(8) and None,  # FRAME
    b"(": _push(_MARK),
    b"0": lambda machine: machine.stack.pop() and None,
    b"1": lambda machine: machine.popped_mark() and None,
    b"}": lambda machine: machine.stack.append({}),
    b"]": lambda machine: machine.stack.append([]),
    b")": _push(()),
    b"t": lambda machine: machine.stack.append(tuple(machine.popped_mark())),
    b"\x85": _tuple_of_one,
    b"\x86": _tuple_of(2),
    b"\x87": _tuple_of(3),
    b"s": _set_item,
    b"u": lambda machine: machine.store(machine.popped_mark()),
    b"a": _append,
    b"e": lambda machine: _extend(machine, machine.popped_mark()),
    b"N": _push(None),
    b"\x88": _push(True),
    b"\x89": _push(False),
    b"K": _small_number,
    b"M": _unsigned(2),
    b"J": _signed,
    b"\x8a": _long,
    b"G": _float,
    b"\x8c": _short_text,
    b"X": _text(4),
    b"\x8d": _text(8),
    b"C": _bytes(1),
    b"B": _bytes(4),
    b"\x8e": _bytes(8),
    b"c": _global,
    b"\x93": _stack_global,
    b"R": PickleMachine.call,
    b"Q": _persistent,
    b"q": lambda machine: machine.remember(machine.number(1)),
    b"r": lambda machine: machine.remember(machine.number(4)),
    b"h": _get,
    b"j": lambda machine: machine.recall(machine.number(4)),
}
for _code, _handler in _BY_NAME.items():
    HANDLERS[_code[0]] = _handler
