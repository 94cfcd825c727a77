"""Screens a TorchScript archive before torch loads it.

TorchScript code isn't Python: torch compiles and runs it in an interpreter of its own, which has no imports and no
system calls. But some of its operators touch files (`aten::save`, `aten::from_file`), and an archive's pickles are
read by torch too. So the code may name none of those operators, nor operators of unknown namespaces, and the pickles
no global but torch's own and the archive's classes.
"""

import io
import pickletools
import re
import zipfile
from pathlib import Path

from exporters.checkpoints.archive import MAX_PICKLE_BYTES, open_zip_safely, read_entry
from exporters.checkpoints.identify import open_regular
from exporters.errors import CorruptCheckpoint, UnsafeCheckpoint

MAX_CODE_BYTES = 16 << 20
_FILE_ACCESS = re.compile(
    r"\b(from_file|load_tensor)\b"
    r"|\.[\s\\]*(save|load)\b"  # torch can be given another name first: x = torch; x.save(…)
    r"|getattr[^)]*[\"'](save|load)[\"']"
    r"|(getattr)[^)]*\\"  # an escape could spell any name
)
NAMESPACES = frozenset({"aten", "prim", "quantized", "torch"})
"""Of operators that the code calls as `ops.<namespace>.<name>`; torch's own, which have no effects but tensors."""
_GLOBAL_MODULES = re.compile(r"__torch__(\.[\w.]+)?|torch\.jit\._pickle|torch\._utils|torch|collections")
_OPERATOR = re.compile(r"\bops\s*\.\s*(\w+)")


def screen(path: Path, *, max_bytes: int) -> None:
    """Refuses an archive that could touch files, or whose pickles name foreign globals.

    Raises:
        UnsafeCheckpoint: names the operator or the global.
        CorruptCheckpoint: not a readable archive.
        FileTooLarge: beyond `max_bytes`.
    """
    stream, size_bytes = open_regular(path, max_bytes=max_bytes)
    with stream:
        archive = open_zip_safely(stream, size_bytes)
        code_bytes = 0
        for name in archive.namelist():
            if name.endswith(".py"):
                source = read_entry(archive, name, limit_bytes=MAX_CODE_BYTES - code_bytes, compressed=True)
                code_bytes += len(source)
                _screen_code(source.decode("utf-8", "replace"), name)
            elif name.endswith(".pkl"):
                _screen_pickle(archive, name)


def _screen_code(source: str, name: str) -> None:
    for namespace in _OPERATOR.findall(source):
        if namespace not in NAMESPACES:
            raise _refused(f"an operator of the namespace {namespace}", name)
    access = _FILE_ACCESS.search(source)
    if access is not None:
        raise _refused(f"{access.group().strip()!r}, which can read or write files", name)


def _screen_pickle(archive: zipfile.ZipFile, name: str) -> None:
    data = read_entry(archive, name, limit_bytes=MAX_PICKLE_BYTES, compressed=True)
    try:
        for opcode, arg, _ in pickletools.genops(io.BytesIO(data)):
            if opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX"):
                raise _refused(f"the pickle operation {opcode.name}", name)
            if opcode.name == "GLOBAL" and _GLOBAL_MODULES.fullmatch(str(arg).split(" ", 1)[0]) is None:
                raise _refused(f"the global {str(arg).replace(' ', '.')}", name)
    except (ValueError, UnicodeError) as error:
        raise CorruptCheckpoint(f"The archive's {name} is damaged.", got=str(error)[:200]) from error


def _refused(what: str, where: str) -> UnsafeCheckpoint:
    return UnsafeCheckpoint(
        f"The TorchScript archive is refused: {where} has {what}.",
        expected="operators on tensors only",
        got=what,
        remedy="If you trust the model, remove that call and script it again.",
    )
