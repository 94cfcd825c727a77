"""Screens a TorchScript archive before torch loads it, and what torch loaded before it runs.

TorchScript code isn't Python: torch compiles and runs it in an interpreter of its own, which has no imports and no
system calls. But some of its operators touch files (`aten::save`, `aten::from_file`), and an archive's pickles are
read by torch too. So the code may not hold those operators' names, anywhere: whatever its syntax, a call needs the
name as a word. Nor may it name operators of unknown namespaces, and the pickles no global but torch's own and the
archive's classes. `screen_loaded` then holds the compiled graphs to the same.

Source: torch/csrc/jit/serialization/import.cpp and import_source.cpp; torch/csrc/jit/frontend/lexer.h.
"""

import io
import pickletools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exporters.checkpoints.archive import MAX_PICKLE_BYTES, open_zip_safely, read_entry
from exporters.checkpoints.identify import open_regular
from exporters.checkpoints.pickle_data import MAX_OPERATIONS
from exporters.errors import CorruptCheckpoint, UnsafeCheckpoint, shown

MAX_CODE_BYTES = 16 << 20
NAMESPACES = ("aten", "prim", "quantized", "torch")
"""Of operators that the code calls as `ops.<namespace>.<name>`; torch's own, which have no effects but tensors."""
_FORBIDDEN = re.compile(
    r"\b(save|load|from_file|load_tensor|PythonOp|IgnoredPythonOp"
    r"|__setstate__"  # torch runs it while it loads, before any graph can be looked at
    # any form but the one that torch writes could spell a name: getattr(torch, "sa" "ve")
    rf"|getattr(?!\(\w+, \"\w+\"\))|ops(?!\.(?:{'|'.join(NAMESPACES)})\b))\b",
    re.ASCII,
)
_FORBIDDEN_KINDS = re.compile(
    r"aten::(save|load|from_file)|prim::(PythonOp|IgnoredPythonOp|CallFunction|CallMethod)"
    rf"|(?!({'|'.join(NAMESPACES)})::).*"
)
_GLOBAL_MODULES = re.compile(r"__torch__(\.[\w.]+)?|torch\.jit\._pickle|torch\._utils|torch|collections")


def screen(path: Path, *, max_bytes: int, max_operations: int = MAX_OPERATIONS) -> None:
    """Refuses an archive that could touch files, or whose pickles name foreign globals.

    Args:
        path: of the archive.
        max_bytes: limit on its size.
        max_operations: of all its pickles together.

    Raises:
        UnsafeCheckpoint: names the operator or the global.
        CorruptCheckpoint: not a readable archive.
        FileTooLarge: beyond `max_bytes`.
    """
    stream, size_bytes = open_regular(path, max_bytes=max_bytes)
    with stream:
        archive = open_zip_safely(stream, size_bytes)
        code_bytes, pickle_bytes, operations = MAX_CODE_BYTES, MAX_PICKLE_BYTES, max_operations
        for name in archive.namelist():
            folded = name.casefold()  # torch finds an entry whatever its case
            if folded.endswith(
                "model.json"
            ):  # the format before torch 1.1 says itself which entries are code
                raise _refused("a model of torch's oldest format", shown(name))
            if folded.endswith(".py"):
                source = read_entry(archive, name, limit_bytes=code_bytes, compressed=True)
                code_bytes -= len(source)
                _screen_code(source.decode("utf-8", "replace"), name)
            elif folded.endswith(".pkl"):
                data = read_entry(archive, name, limit_bytes=pickle_bytes, compressed=True)
                pickle_bytes -= len(data)
                operations = _screen_pickle(data, name, operations)


def _screen_code(source: str, name: str) -> None:
    found = _FORBIDDEN.search(source)
    if found is not None:
        raise _refused(
            f"{source[found.start() : found.start() + 60]!r}, which can read or write files", shown(name)
        )


def _screen_pickle(data: bytes, name: str, operations: int) -> int:
    """Returns how many operations are left."""
    try:
        for opcode, arg, _ in pickletools.genops(io.BytesIO(data)):
            operations -= 1
            if operations < 0:
                raise CorruptCheckpoint("The archive's pickles are too long to be a model's.")
            if opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX"):
                raise _refused(f"the pickle operation {opcode.name}", shown(name))
            if opcode.name == "GLOBAL" and _GLOBAL_MODULES.fullmatch(str(arg).split(" ", 1)[0]) is None:
                raise _refused(f"the global {shown(str(arg).replace(' ', '.'))}", shown(name))
    except (ValueError, UnicodeError) as error:
        raise CorruptCheckpoint(f"The archive's {shown(name)} is damaged.", got=str(error)[:200]) from error
    return operations


def screen_loaded(module: Any) -> None:
    """Refuses a loaded module whose methods use an operator that isn't torch's own, or one that touches files.

    Args:
        module: a `torch.jit.ScriptModule`, none of whose code ran yet.

    Raises:
        UnsafeCheckpoint: names the operator.
    """
    from torch import _C  # noqa: PLC0415 - slow to import

    for method in module._c._method_names():
        graph = module._c._get_method(method).graph.copy()
        _C._jit_pass_inline(graph)
        for node in _nodes(graph):
            if _FORBIDDEN_KINDS.fullmatch(node.kind()) is not None:
                raise _refused(f"the operator {shown(node.kind())}", f"the method {shown(method)}")


def _nodes(graph: Any) -> Iterator[Any]:
    pending = [graph]
    while pending:
        for node in pending.pop().nodes():
            yield node
            pending += node.blocks()
            pending += [node.g(name) for name in node.attributeNames() if node.kindOf(name) == "g"]


def _refused(what: str, where: str) -> UnsafeCheckpoint:
    return UnsafeCheckpoint(
        f"The TorchScript archive is refused: {where} has {what}.",
        expected="operators on tensors only",
        got=what,
        remedy="If you trust the model, remove that call, or rename that attribute, and script it again.",
    )
