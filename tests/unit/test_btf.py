"""BTF packed by hand, after include/uapi/linux/btf.h."""

import struct
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockledger.kernel import btf
from sockledger.kernel.btf import Btf, Layout, describe, parse

HEADER_SIZE = 24


class Blob:
    """Types, numbered from 1 as they are added."""

    def __init__(self) -> None:
        self._types = b""
        self._strings = b"\0"
        self._count = 0

    def string(self, text: str) -> int:
        offset = len(self._strings)
        self._strings += text.encode() + b"\0"
        return offset if text else 0

    def add(
        self, kind: int, name: str, size_or_type: int, extra: bytes = b"", *, members: int = 0, flag: int = 0
    ) -> int:
        info = flag << 31 | kind << 24 | members
        self._types += struct.pack("=III", self.string(name), info, size_or_type) + extra
        self._count += 1
        return self._count

    def integer(self, size: int) -> int:
        return self.add(btf.KIND_INT, f"u{size * 8}", size, struct.pack("=I", size * 8))

    def array(self, element: int, count: int) -> int:
        return self.add(btf.KIND_ARRAY, "", 0, struct.pack("=III", element, element, count))

    def enum(self, size: int = 4, *, name: str = "enum", **values: int) -> int:
        extra = b"".join(struct.pack("=Ii", self.string(name), value) for name, value in values.items())
        return self.add(btf.KIND_ENUM, name, size, extra, members=len(values))

    def struct(self, name: str, size: int, members: Sequence[tuple[str, int, int]], *, flag: int = 0) -> int:
        """*members*: name, type, position in bits (with a flag: and the field's width, above bit 24)."""
        extra = b"".join(struct.pack("=III", self.string(member), *rest) for member, *rest in members)
        return self.add(btf.KIND_STRUCT, name, size, extra, members=len(members), flag=flag)

    def raw(self, magic: int = 0xEB9F) -> bytes:
        sizes = (HEADER_SIZE, 0, len(self._types), len(self._types), len(self._strings))
        return struct.pack("=HBBIIIII", magic, 1, 0, *sizes) + self._types + self._strings

    def parsed(self) -> Btf:
        return Btf(self.raw())


def test_struct_of_integers() -> None:
    blob = Blob()
    u64, u16 = blob.integer(8), blob.integer(2)
    key = blob.struct("key", 16, [("id", u64, 0), ("kind", u16, 64)])
    found = blob.parsed().layout(key)
    assert (found.name, found.size) == ("key", 16)
    assert [(field.name, field.offset, field.size) for field in found.fields] == [
        ("id", 0, 8),
        ("kind", 8, 2),
    ]
    packed = found.pack(id=0x0102030405060708, kind=9)
    assert packed == struct.pack("=QH6x", 0x0102030405060708, 9)
    assert found.unpack(packed) == {"id": 0x0102030405060708, "kind": 9}


def test_hole_before_a_member() -> None:
    blob = Blob()
    u8, u64 = blob.integer(1), blob.integer(8)
    found = blob.struct("holey", 16, [("small", u8, 0), ("big", u64, 64)])
    assert blob.parsed().layout(found).pack(small=1, big=2) == struct.pack("=B7xQ", 1, 2)


def test_typedefs_and_qualifiers_are_followed() -> None:
    blob = Blob()
    member = blob.integer(4)
    for kind in (btf.KIND_TYPEDEF, btf.KIND_VOLATILE, btf.KIND_CONST, btf.KIND_RESTRICT, btf.KIND_TYPE_TAG):
        member = blob.add(kind, "", member)
    found = blob.add(btf.KIND_CONST, "", blob.struct("s", 4, [("a", member, 0)]))
    assert blob.parsed().layout(found).pack(a=7) == struct.pack("=I", 7)


def test_enum_names_and_narrow_enums() -> None:
    """`enum protocol protocol : 16` is a member with a width of its own."""
    blob = Blob()
    enum = blob.enum(OTHER=0, TCP=1, NEGATIVE=-1)
    found = blob.struct("s", 4, [("wide", enum, 16 << 24), ("next", enum, 16 << 24 | 16)], flag=1)
    layout = blob.parsed().layout(found)
    assert [(field.offset, field.size) for field in layout.fields] == [(0, 2), (2, 2)]
    assert layout.field("next").names == {0: "OTHER", 1: "TCP", -1: "NEGATIVE"}


def test_a_struct_by_its_name() -> None:
    blob = Blob()
    blob.enum(name="settings", ON=1)
    number = blob.struct("settings", 4, [("tcp", blob.integer(4), 0)])
    parsed = blob.parsed()
    assert parsed.struct("settings") == parsed.layout(number)
    with pytest.raises(ValueError, match="BTF has no struct measure"):
        parsed.struct("measure")


def test_an_enum_by_its_name() -> None:
    blob = Blob()
    blob.enum(name="role", ACTIVE=0, PASSIVE=1)
    blob.struct("failure", 4, [("role", blob.integer(4), 0)])
    blob.enum(name="failure", FAILURE_RESET=1, NEGATIVE=-1)
    parsed = blob.parsed()
    assert parsed.enum("role") == {0: "ACTIVE", 1: "PASSIVE"}
    assert parsed.enum("failure") == {1: "FAILURE_RESET", -1: "NEGATIVE"}
    with pytest.raises(ValueError, match="BTF has no enum measure"):
        parsed.enum("measure")


def test_arrays_of_arrays() -> None:
    """`u64 id; u32 pending[2][3];`"""
    blob = Blob()
    u64, u32 = blob.integer(8), blob.integer(4)
    inner = blob.add(btf.KIND_TYPEDEF, "row", blob.array(u32, 3))
    found = blob.struct("s", 32, [("id", u64, 0), ("pending", blob.array(inner, 2), 64)])
    layout = blob.parsed().layout(found)
    names = ["id", *(f"pending[{row}][{column}]" for row in range(2) for column in range(3))]
    assert [field.name for field in layout.fields] == names
    packed = struct.pack("=Q6I", 1, 2, 3, 4, 5, 6, 7)
    assert layout.unpack(packed) == dict(zip(names, range(1, 8), strict=True))
    assert layout.pack(**{"pending[1][2]": 7}) == struct.pack("=28xI", 7)


def test_structs_in_arrays_and_structs() -> None:
    """`struct { u64 id; struct count counts; struct count rows[2]; }` with an enum in each count."""
    blob = Blob()
    u64, enum = blob.integer(8), blob.enum(OTHER=0, TCP=1)
    count = blob.struct("count", 16, [("bytes", u64, 0), ("protocol", enum, 64)])
    rows = blob.array(blob.add(btf.KIND_CONST, "", count), 2)
    found = blob.struct("s", 56, [("id", u64, 0), ("counts", count, 64), ("rows", rows, 192)])
    layout = blob.parsed().layout(found)
    assert [(field.name, field.offset, field.size) for field in layout.fields] == [
        ("id", 0, 8),
        ("counts.bytes", 8, 8),
        ("counts.protocol", 16, 4),
        ("rows[0].bytes", 24, 8),
        ("rows[0].protocol", 32, 4),
        ("rows[1].bytes", 40, 8),
        ("rows[1].protocol", 48, 4),
    ]
    assert layout.field("rows[1].protocol").names == {0: "OTHER", 1: "TCP"}


def test_members_of_an_anonymous_struct_are_the_outer_ones() -> None:
    blob = Blob()
    u32 = blob.integer(4)
    anonymous = blob.struct("", 8, [("a", u32, 0), ("b", u32, 32)])
    named = blob.struct("inner", 8, [("", anonymous, 0)])
    found = blob.struct("s", 16, [("", anonymous, 0), ("c", named, 64)])
    layout = blob.parsed().layout(found)
    assert [(field.name, field.offset) for field in layout.fields] == [
        ("a", 0),
        ("b", 4),
        ("c.a", 8),
        ("c.b", 12),
    ]


def test_narrow_enums_in_a_nested_struct() -> None:
    blob = Blob()
    enum = blob.enum(OTHER=0, TCP=1)
    inner = blob.struct("inner", 4, [("wide", enum, 16 << 24), ("next", enum, 16 << 24 | 16)], flag=1)
    found = blob.struct("s", 8, [("rows", blob.array(inner, 2), 0)])
    layout = blob.parsed().layout(found)
    assert [(field.offset, field.size) for field in layout.fields] == [(0, 2), (2, 2), (4, 2), (6, 2)]


def test_pointers_unions_and_floats_are_passed_over() -> None:
    blob = Blob()
    u64 = blob.integer(8)
    pointer = blob.add(btf.KIND_PTR, "", u64)
    union = blob.add(btf.KIND_UNION, "u", 8, struct.pack("=III", blob.string("x"), u64, 0), members=1)
    passed_over = [pointer, union, blob.add(16, "double", 8), blob.array(pointer, 2)]
    inner = blob.struct("inner", 16, [("pointer", pointer, 0), ("b", u64, 64)])
    members = [(f"m{number}", member, 64 + number * 64) for number, member in enumerate(passed_over)]
    found = blob.struct("s", 64, [("a", u64, 0), *members, ("inner", inner, 384)])
    layout = blob.parsed().layout(found)
    assert [field.name for field in layout.fields] == ["a", "inner.b"]
    assert layout.pack(a=1, **{"inner.b": 2}) == struct.pack("=Q48xQ", 1, 2)


def test_types_of_all_sizes_are_skipped() -> None:
    """A kind whose size is not known would shift all that follow."""
    blob = Blob()
    u32 = blob.integer(4)
    pair = struct.pack("=II", 0, u32)
    triple = struct.pack("=III", 0, u32, 0)
    blob.add(btf.KIND_PTR, "", u32)
    blob.add(7, "forward", 0)
    blob.add(12, "function", u32)
    blob.add(16, "float", 8)
    blob.add(btf.KIND_FUNC_PROTO, "", u32, pair * 2, members=2)
    blob.add(btf.KIND_UNION, "u", 4, triple, members=1)
    blob.add(btf.KIND_VAR, "v", u32, struct.pack("=I", 1))
    blob.add(btf.KIND_DATASEC, ".data", 4, triple * 2, members=2)
    blob.add(btf.KIND_DECL_TAG, "tag", u32, struct.pack("=i", -1))
    blob.add(btf.KIND_ENUM64, "e", 8, triple * 3, members=3)
    found = blob.struct("last", 4, [("a", u32, 0)])
    assert blob.parsed().layout(found).name == "last"


def test_bit_fields_are_refused() -> None:
    blob = Blob()
    found = blob.struct("s", 4, [("flags", blob.integer(4), 3 << 24)], flag=1)
    with pytest.raises(ValueError, match="struct s: flags is not made of bytes"):
        blob.parsed().layout(found)
    outer = blob.struct("outer", 4, [("inner", found, 0)])
    with pytest.raises(ValueError, match=r"struct outer: inner\.flags is not made of bytes"):
        blob.parsed().layout(outer)


def test_no_struct() -> None:
    blob = Blob()
    number = blob.integer(4)
    with pytest.raises(ValueError, match=r"BTF type 1 \(u32\) is no struct"):
        blob.parsed().layout(number)
    with pytest.raises(ValueError, match=r"BTF type 0 \(void\) is no struct"):
        blob.parsed().layout(0)


def test_no_btf() -> None:
    with pytest.raises(ValueError, match="not BTF: magic 0x1234"):
        Btf(Blob().raw(magic=0x1234))


def test_unknown_members() -> None:
    blob = Blob()
    u8 = blob.integer(1)
    found = blob.struct("s", 1, [("a", u8, 0)])
    layout = blob.parsed().layout(found)
    with pytest.raises(KeyError, match="struct s has no member b, c"):
        layout.pack(a=1, c=2, b=3)
    with pytest.raises(KeyError, match="struct s has no member z"):
        layout.field("z")


def test_descriptions() -> None:
    """One line, and the same layout again, with or without the names of values."""
    blob = Blob()
    u64, enum = blob.integer(8), blob.enum(OTHER=0, TCP=1)
    count = blob.struct("count", 16, [("bytes", u64, 0), ("protocol", enum, 64)])
    outer = blob.struct("s", 40, [("id", u64, 0), ("rows", blob.array(count, 2), 64)])
    layout = blob.parsed().layout(outer)
    text = "s 40 id:0:8 rows[0].bytes:8:8 rows[0].protocol:16:4 rows[1].bytes:24:8 rows[1].protocol:32:4"
    assert describe(layout, enums=False) == text
    assert parse(text) == Layout("s", 40, tuple(replace(field, names={}) for field in layout.fields))
    assert describe(layout) == text.replace(":4", ":4:OTHER:TCP")
    assert parse(describe(layout)) == layout
    nameless = Layout("", 8, ())
    assert parse(describe(nameless)) == nameless


@pytest.mark.parametrize("text", ["", "s", "s x", "s 8 a", "s 8 a:0", "s 8 a:0:x", "s 8 "])
def test_no_description(text: str) -> None:
    with pytest.raises(ValueError, match=r"unpack|invalid literal"):
        parse(text)


SIZES = st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=12)


@given(SIZES, st.data())
def test_any_struct_survives_packing(sizes: list[int], data: st.DataObject) -> None:
    """By itself, and as a member of another: in an array and alone."""
    blob = Blob()
    types = {size: blob.integer(size) for size in (1, 2, 4, 8)}
    members, values, at = [], {}, 0
    for number, size in enumerate(sizes):
        at = -(-at // size) * size
        members.append((f"m{number}", types[size], at * 8))
        values[f"m{number}"] = data.draw(st.integers(0, 2 ** (size * 8) - 1))
        at += size
    total = -(-at // 8) * 8
    found = blob.struct("s", total, members)
    outer = blob.struct("outer", total * 3, [("rows", blob.array(found, 2), 0), ("last", found, total * 16)])
    layout = blob.parsed().layout(found)
    packed = layout.pack(**values)
    assert len(packed) == total
    assert layout.unpack(packed) == values
    assert list(layout.unpack_all(packed * 3)) == [tuple(values.values())] * 3
    flattened = {
        f"{of}.{name}": value for of in ("rows[0]", "rows[1]", "last") for name, value in values.items()
    }
    layout = blob.parsed().layout(outer)
    assert layout.unpack(packed * 3) == flattened
    assert layout.pack(**flattened) == packed * 3
