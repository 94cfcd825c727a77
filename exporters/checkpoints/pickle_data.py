"""Interprets a pickle as data: a small stack machine over `pickletools.genops`, without any unpickler.

What an unpickler would import is kept as a `Global`, a name. What it would call is looked up, by that name, in the
fixed table of `allowed.py`; a global that isn't there is refused as soon as it is named, whether or not it is called.
So a file can make this module build lists, dicts, `Namespace`s and `TensorRef`s, and nothing else.
docs/decisions/003-checkpoint-reader.md says why not `torch.load`.
"""

import pickletools
from collections.abc import Callable, Hashable
from typing import IO, Any, Protocol, cast

from exporters.checkpoints import allowed
from exporters.checkpoints.values import Global, Namespace
from exporters.errors import CorruptCheckpoint, UnsafeCheckpoint

MAX_OPERATIONS = 2_000_000
"""Opcodes of one pickle. A checkpoint with 1,000 tensors has about 30,000."""
MAX_INT_BITS = 128
MAX_COPIED = 4 << 20
"""Items and bytes that calls may copy: otherwise one list of a million, made a set 100,000 times, fills memory."""
_DICT_ENTRY = 16
"""An entry of a dict counts as so many."""

_CONSTANTS = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "FLOAT", "BINFLOAT", "BYTEARRAY8",
})  # fmt: skip
_MARK = object()

Storage = Callable[[Any], Any]
"""Turns a persistent id into a `StorageRef`."""


class ByteSource(Protocol):
    """What a pickle is read from."""

    def read(self, size: int, /) -> bytes:
        """Reads at most `size` bytes."""
        ...

    def readline(self) -> bytes:
        """Reads to the next line feed."""
        ...


def interpret(
    stream: ByteSource, *, storage: Storage | None = None, max_operations: int = MAX_OPERATIONS
) -> Any:
    """Reads one pickle from `stream` and leaves it behind the pickle's last byte.

    Raises:
        UnsafeCheckpoint: names a global, or uses an opcode, beyond those that hold tensors and configuration.
        CorruptCheckpoint: not a pickle, truncated, or beyond the bounds.
    """
    machine = _Machine(storage)
    try:
        for count, (opcode, arg, _) in enumerate(pickletools.genops(cast("IO[bytes]", stream))):
            if count >= max_operations:
                raise CorruptCheckpoint(
                    "The file's pickle is too long to be a checkpoint's.",
                    expected=f"at most {max_operations:,} operations",
                )
            machine.step(opcode.name, arg)
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        UnicodeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise CorruptCheckpoint(
            "The file's pickle is damaged or truncated.",
            got=str(error)[:200] or type(error).__name__,
            remedy="Copy or save the checkpoint again.",
        ) from error
    return machine.result


class _Machine:
    """The pickle virtual machine's stack and memo, holding inert values."""

    def __init__(self, storage: Storage | None) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storage = storage
        self.result: Any = None
        self.copied = 0

    def charge(self, *values: Any, weight: int = 1) -> None:
        """Counts what a call may copy against `MAX_COPIED`."""
        self.copied += sum(
            len(value) * (_DICT_ENTRY if isinstance(value, dict) else weight)
            for value in values
            if isinstance(value, str | bytes | list | tuple | dict)
        )
        if self.copied > MAX_COPIED:
            raise ValueError("unfolds into more values than a checkpoint holds")

    def step(self, name: str, arg: Any) -> None:
        """Carries out one opcode."""
        if name in _CONSTANTS:
            if isinstance(arg, int) and arg.bit_length() > MAX_INT_BITS:
                raise ValueError(f"an integer of {arg.bit_length()} bits")
            self.stack.append(bytes(arg) if isinstance(arg, bytearray) else arg)
            return
        handler = _HANDLERS.get(name)
        if handler is None:
            raise UnsafeCheckpoint(
                f"The checkpoint's pickle uses the operation {name}, which holding tensors and configuration "
                "doesn't need.",
                remedy=allowed.REMEDY,
            )
        handler(self, arg)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value belongs")
        return value

    def pop_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        items.reverse()
        return items

    def top(self) -> Any:
        if self.stack[-1] is _MARK:
            raise ValueError("a mark where a value belongs")
        return self.stack[-1]

    def append_items(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is not list:
            raise ValueError(f"items appended to {type(target).__name__}")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Namespace):  # a configuration that subclasses dict
            target = target.fields
        if type(target) is not dict or len(items) % 2:
            raise ValueError(f"items set on {type(target).__name__}")
        target.update(_pairs(items))

    def global_(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise ValueError("the name of a global isn't a string")
        self.stack.append(allowed.admit(Global(module, name)))

    def memoize(self, index: int) -> None:
        self.memo[index] = self.top()

    def reduce(self) -> None:
        args, function = self.pop(), self.pop()
        if type(args) is not tuple:
            raise ValueError("arguments that aren't a tuple")
        makes_dict = isinstance(function, Global) and function.module == "collections"
        self.charge(args, *args, weight=_DICT_ENTRY if makes_dict else 1)
        self.stack.append(allowed.reduce(function, args))

    def new_object(self, *, keywords: bool) -> None:
        kwargs = self.pop() if keywords else {}
        args, cls = self.pop(), self.pop()
        if kwargs != {}:
            raise allowed.refused(cls, "constructed with arguments")
        self.stack.append(allowed.new_object(cls, args))

    def build(self) -> None:
        state, target = self.pop(), self.top()
        self.charge(state, *(state if type(state) is tuple else ()))
        allowed.build(target, state)

    def instance(self, cls: Any, args: list[Any]) -> None:
        self.stack.append(allowed.new_object(cls, tuple(args)))

    def inst(self, arg: str) -> None:
        args = self.pop_mark()
        module, _, name = arg.partition(" ")
        self.instance(allowed.admit(Global(module, name)), args)

    def obj(self) -> None:
        cls, *args = self.pop_mark()
        self.instance(cls, args)

    def persistent(self) -> None:
        pid = self.pop()
        if self.storage is None:
            raise UnsafeCheckpoint(
                "The checkpoint's pickle refers to data outside itself (a persistent id).",
                remedy=allowed.REMEDY,
            )
        self.stack.append(self.storage(pid))

    def stop(self) -> None:
        self.result = self.pop()
        if self.stack:
            raise ValueError("values left on the stack")


def _pairs(items: list[Any]) -> list[tuple[Hashable, Any]]:
    keys = items[::2]
    for key in keys:  # hashing a deep tuple could exhaust the C stack
        if not isinstance(key, str | int | float | bytes | None):
            raise ValueError(f"a dictionary key of type {type(key).__name__}")
    return list(zip(keys, items[1::2], strict=True))


def _tuple(machine: _Machine, length: int) -> None:
    items = tuple(machine.pop() for _ in range(length))
    machine.stack.append(items[::-1])


_HANDLERS: dict[str, Callable[[_Machine, Any], object]] = {
    "PROTO": lambda _m, _: None,
    "FRAME": lambda _m, _: None,
    "STOP": lambda m, _: m.stop(),
    "NONE": lambda m, _: m.stack.append(None),
    "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False),
    "MARK": lambda m, _: m.stack.append(_MARK),
    "POP": lambda m, _: m.stack.pop(),
    "POP_MARK": lambda m, _: m.pop_mark(),
    "DUP": lambda m, _: m.stack.append(m.top()),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "EMPTY_SET": lambda m, _: m.stack.append([]),  # sets become lists: JSON has none
    "LIST": lambda m, _: m.stack.append(m.pop_mark()),
    "FROZENSET": lambda m, _: m.stack.append(m.pop_mark()),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.pop_mark())),
    "TUPLE1": lambda m, _: _tuple(m, 1),
    "TUPLE2": lambda m, _: _tuple(m, 2),
    "TUPLE3": lambda m, _: _tuple(m, 3),
    "DICT": lambda m, _: m.stack.append(dict(_pairs(m.pop_mark()))),
    "APPEND": lambda m, _: m.append_items([m.pop()]),
    "APPENDS": lambda m, _: m.append_items(m.pop_mark()),
    "ADDITEMS": lambda m, _: m.append_items(m.pop_mark()),
    "SETITEM": lambda m, _: m.set_items([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m, _: m.set_items(m.pop_mark()),
    "PUT": lambda m, arg: m.memoize(arg),
    "BINPUT": lambda m, arg: m.memoize(arg),
    "LONG_BINPUT": lambda m, arg: m.memoize(arg),
    "MEMOIZE": lambda m, _: m.memoize(len(m.memo)),
    "GET": lambda m, arg: m.stack.append(m.memo[arg]),
    "BINGET": lambda m, arg: m.stack.append(m.memo[arg]),
    "LONG_BINGET": lambda m, arg: m.stack.append(m.memo[arg]),
    "GLOBAL": lambda m, arg: m.global_(*arg.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.global_(*[m.pop(), m.pop()][::-1]),
    "REDUCE": lambda m, _: m.reduce(),
    "NEWOBJ": lambda m, _: m.new_object(keywords=False),
    "NEWOBJ_EX": lambda m, _: m.new_object(keywords=True),
    "BUILD": lambda m, _: m.build(),
    "INST": lambda m, arg: m.inst(arg),
    "OBJ": lambda m, _: m.obj(),
    "BINPERSID": lambda m, _: m.persistent(),
}
"""What isn't here is refused: PERSID, EXT1, EXT2, EXT4, NEXT_BUFFER, READONLY_BUFFER."""
