"""What may be in a .bin file of weights, by its bytes and before anything of it is unpickled.

torch.save writes a zip archive: a pickle that puts tensors together, and beside it the numbers. The pickle's
opcodes are listed, not run, and only calls that rebuild tensors may be among them: `weights_only=True` alone
would also make, say, a bytearray of any size.
"""

import io
import pickletools
import re
import struct
import zipfile
import zlib
from pathlib import Path

PICKLE = 1 << 20  # bytes of the list of tensors: that of MGM-2B has some 200 kB
STORED = re.compile(
    r"([^/]+)/(?:data\.pkl|byteorder|version|\.format_version|\.storage_alignment|\.data/serialization_id|data/[0-9]+)"
)
STORAGES = ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool")
CALLS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
CALLS |= {f"torch {kind}Storage" for kind in STORAGES}
# Everything that protocol 2 needs for a dict of tensors. Of the ways to call or to look up an object only
# GLOBAL and REDUCE are here.
OPCODES = frozenset(
    re.findall(
        r"\w+",
        """
        PROTO STOP MARK POP POP_MARK BINPUT LONG_BINPUT PUT BINGET LONG_BINGET GET MEMOIZE EMPTY_DICT DICT
        SETITEM SETITEMS EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 NONE NEWTRUE
        NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE UNICODE BINPERSID
        GLOBAL REDUCE BUILD
        """,
    )
)


def assert_tensors(file: Path) -> None:
    """ValueError, whose text is a phrase, unless `file` is of torch.save's format and its pickle only
    rebuilds tensors."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            roots = {match[1] if (match := STORED.fullmatch(info.filename)) else None for info in members}
            lists = [info for info in members if info.filename.endswith("/data.pkl")]
            if (
                len(roots) != 1
                or None in roots
                or len(lists) != 1
                or len({info.filename for info in members}) < len(members)
            ):
                raise ValueError("is not an archive of one list of tensors and their numbers")
            if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x2041 for info in members):
                raise ValueError("is compressed or encrypted, which PyTorch does not do")
            if lists[0].file_size > PICKLE:
                raise ValueError(
                    f"has a list of tensors of {lists[0].file_size} bytes, at most {PICKLE} are read"
                )
            pickled = archive.read(lists[0])
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        OSError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        UnicodeDecodeError,
    ) as error:
        raise ValueError(f"is not a readable zip archive: {error}") from None
    if strange := foreign(pickled):
        raise ValueError(f"has a pickle that would run {strange}, which rebuilds no tensor")


def foreign(pickled: bytes) -> str | None:
    """The first instruction of a pickle that is not needed for a dict of tensors, None if there is none;
    ValueError for no pickle."""
    stream = io.BytesIO(pickled)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name not in OPCODES:
                return opcode.name
            if opcode.name == "GLOBAL" and argument not in CALLS:
                return repr(argument)
    except (ValueError, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(f"has a damaged pickle: {error}") from None
    return "what follows its end" if stream.read(1) else None
