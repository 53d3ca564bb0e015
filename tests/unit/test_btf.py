"""BTF packed by hand, after include/uapi/linux/btf.h."""

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockledger.kernel import btf
from sockledger.kernel.btf import Btf

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

    def enum(self, size: int = 4, **values: int) -> int:
        extra = b"".join(struct.pack("=Ii", self.string(name), value) for name, value in values.items())
        return self.add(btf.KIND_ENUM, "enum", size, extra, members=len(values))

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


def test_what_is_no_scalar_is_passed_over() -> None:
    blob = Blob()
    u64 = blob.integer(8)
    array = blob.add(btf.KIND_ARRAY, "", 0, struct.pack("=III", u64, u64, 2))
    inner = blob.struct("inner", 8, [("x", u64, 0)])
    pointer = blob.add(btf.KIND_PTR, "", u64)
    found = blob.struct(
        "s", 40, [("a", u64, 0), ("array", array, 64), ("inner", inner, 192), ("pointer", pointer, 256)]
    )
    layout = blob.parsed().layout(found)
    assert [field.name for field in layout.fields] == ["a"]
    assert layout.pack(a=1) == struct.pack("=Q32x", 1)


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


SIZES = st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=12)


@given(SIZES, st.data())
def test_any_struct_survives_packing(sizes: list[int], data: st.DataObject) -> None:
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
    layout = blob.parsed().layout(found)
    packed = layout.pack(**values)
    assert len(packed) == total
    assert layout.unpack(packed) == values
    assert list(layout.unpack_all(packed * 3)) == [tuple(values.values())] * 3
