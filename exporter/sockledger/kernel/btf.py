"""Layouts of map keys and values, read from the object's own BTF, so that no struct is described twice.

Parsing is pure: bytes in, layouts out. Source: include/uapi/linux/btf.h; raw BTF in the machine's order.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

# enum btf_kind
KIND_INT, KIND_PTR, KIND_ARRAY, KIND_STRUCT, KIND_UNION, KIND_ENUM = 1, 2, 3, 4, 5, 6
KIND_TYPEDEF, KIND_VOLATILE, KIND_CONST, KIND_RESTRICT = 8, 9, 10, 11
KIND_FUNC_PROTO, KIND_VAR, KIND_DATASEC, KIND_DECL_TAG, KIND_ENUM64, KIND_TYPE_TAG = 13, 14, 15, 17, 19, 18

_FOLLOWED = (KIND_TYPEDEF, KIND_VOLATILE, KIND_CONST, KIND_RESTRICT, KIND_TYPE_TAG)
_EXTRA_FIXED = {KIND_INT: 4, KIND_ARRAY: 12, KIND_VAR: 4, KIND_DECL_TAG: 4}
_EXTRA_PER_MEMBER = {
    KIND_STRUCT: 12, KIND_UNION: 12, KIND_ENUM: 8, KIND_FUNC_PROTO: 8, KIND_DATASEC: 12, KIND_ENUM64: 12,
}  # fmt: skip
_UNSIGNED = {1: "B", 2: "H", 4: "I", 8: "Q"}


@dataclass(frozen=True)
class Field:
    """A member of a struct: *offset* and *size* in bytes; *names* of its enum's values, if it is one."""

    name: str
    offset: int
    size: int
    names: Mapping[int, str]


@dataclass(frozen=True)
class Layout:
    """A struct's unsigned scalars, in order, those in arrays and nested structs under C's names for them.

    That is ``rows[1].bytes``. An array of char is one member, bytes. Pointers, unions and floats are passed
    over.
    """

    name: str
    size: int
    fields: tuple[Field, ...]

    @cached_property
    def struct(self) -> struct.Struct:
        """The packer of one element, padded to its full size."""
        text, at = "=", 0
        for field in self.fields:
            text += f"{field.offset - at}x{_UNSIGNED.get(field.size) or f'{field.size}s'}"
            at = field.offset + field.size
        return struct.Struct(f"{text}{self.size - at}x")

    def field(self, name: str) -> Field:
        """Return the member called *name*; KeyError if there is none."""
        for field in self.fields:
            if field.name == name:
                return field
        raise KeyError(f"struct {self.name} has no member {name}")

    def pack(self, **values: int) -> bytes:
        """Return one element; members that are not given are 0."""
        unknown = values.keys() - {field.name for field in self.fields}
        if unknown:
            raise KeyError(f"struct {self.name} has no member {', '.join(sorted(unknown))}")
        return self.struct.pack(*(values.get(field.name, 0) for field in self.fields))

    def unpack(self, data: bytes) -> dict[str, int]:
        """Return one element by member name."""
        return dict(zip((field.name for field in self.fields), self.struct.unpack(data), strict=True))

    def unpack_all(self, data: bytes) -> Iterator[tuple[int, ...]]:
        """Yield elements that lie behind each other, members in the order of *fields*."""
        return self.struct.iter_unpack(data)


def describe(layout: Layout, *, enums: bool = True) -> str:
    """Return a layout as a line of text, with the names of its *enums*' values, which are numbered from 0."""
    fields = (
        ":".join((field.name, str(field.offset), str(field.size), *(field.names.values() if enums else ())))
        for field in layout.fields
    )
    return " ".join((layout.name, str(layout.size), *fields))


def parse(text: str) -> Layout:
    """Return the layout that `describe` made *text* of; ValueError if it is none."""
    name, size, *fields = text.split(" ")
    return Layout(name, int(size), tuple(map(_parse_field, fields)))


def _parse_field(text: str) -> Field:
    name, offset, size, *names = text.split(":")
    return Field(name, int(offset), int(size), dict(enumerate(names)))


@dataclass(frozen=True)
class _Type:
    name: str
    kind: int
    kind_flag: bool
    size_or_type: int
    extra: bytes


class Btf:
    """The types of one BTF blob; ValueError if it is none."""

    def __init__(self, raw: bytes) -> None:
        magic, _version, _flags, header, types, types_size, strings, strings_size = struct.unpack_from(
            "=HBBIIIII", raw
        )
        if magic != 0xEB9F:
            raise ValueError(f"not BTF: magic {magic:#x}")
        names = raw[header + strings : header + strings + strings_size]
        self._types = [_Type("void", kind=0, kind_flag=False, size_or_type=0, extra=b"")]
        at, end = header + types, header + types + types_size
        while at < end:
            name, info, size_or_type = struct.unpack_from("=III", raw, at)
            kind, members = info >> 24 & 31, info & 0xFFFF
            extra = _EXTRA_FIXED.get(kind, 0) + _EXTRA_PER_MEMBER.get(kind, 0) * members
            at += 12
            self._types.append(
                _Type(_string(names, name), kind, bool(info >> 31), size_or_type, raw[at : at + extra])
            )
            at += extra
        self._strings = names

    def layout(self, type_id: int) -> Layout:
        """Return the layout of struct *type_id*; ValueError if it is no struct."""
        found = self._resolve(type_id)
        if found.kind != KIND_STRUCT:
            raise ValueError(f"BTF type {type_id} ({found.name or 'anonymous'}) is no struct")
        fields = []
        for name, scalar, position, bits in self._scalars(found):
            size = bits // 8 or scalar.size_or_type
            if position % 8 or bits % 8 or (size in _UNSIGNED) == (scalar.kind == KIND_ARRAY):
                raise ValueError(f"struct {found.name}: {name} is not made of bytes")
            names = self._enumerators(scalar) if scalar.kind == KIND_ENUM else {}
            fields.append(Field(name, position // 8, size, names))
        return Layout(found.name, found.size_or_type, tuple(fields))

    def struct(self, name: str) -> Layout:
        """Return the layout of the struct called *name*; ValueError if there is none."""
        for type_id, found in enumerate(self._types):
            if found.kind == KIND_STRUCT and found.name == name:
                return self.layout(type_id)
        raise ValueError(f"BTF has no struct {name}")

    def enum(self, name: str) -> dict[int, str]:
        """Return the names of an enum's values; ValueError if there is no enum called *name*."""
        for found in self._types:
            if found.kind == KIND_ENUM and found.name == name:
                return self._enumerators(found)
        raise ValueError(f"BTF has no enum {name}")

    def _scalars(
        self, found: _Type, name: str = "", position: int = 0, bits: int = 0
    ) -> Iterator[tuple[str, _Type, int, int]]:
        """Yield name, type, position in bits, and width if a bit-field's, of all integers and enums."""
        if found.kind in (KIND_INT, KIND_ENUM):
            yield name, found, position, bits
        elif found.kind == KIND_ARRAY:
            element, count = self._array(found)
            if element.name == "char":
                yield name, found, position, count * 8
                return
            stride = self._size(element) * 8
            for index in range(count):
                yield from self._scalars(element, f"{name}[{index}]", position + index * stride)
        elif found.kind == KIND_STRUCT:
            for string, member_type, where in struct.iter_unpack("=III", found.extra):
                at, bits = (where & 0xFFFFFF, where >> 24) if found.kind_flag else (where, 0)
                path = ".".join(filter(None, (name, _string(self._strings, string))))
                yield from self._scalars(self._resolve(member_type), path, position + at, bits)

    def _array(self, found: _Type) -> tuple[_Type, int]:
        element_type, _index_type, count = struct.unpack("=III", found.extra)
        return self._resolve(element_type), count

    def _size(self, found: _Type) -> int:
        if found.kind == KIND_ARRAY:
            element, count = self._array(found)
            return self._size(element) * count
        return found.size_or_type

    def _resolve(self, type_id: int) -> _Type:
        found = self._types[type_id]
        while found.kind in _FOLLOWED:
            found = self._types[found.size_or_type]
        return found

    def _enumerators(self, enum: _Type) -> dict[int, str]:
        return {value: _string(self._strings, name) for name, value in struct.iter_unpack("=Ii", enum.extra)}


def _string(strings: bytes, offset: int) -> str:
    return strings[offset : strings.index(b"\0", offset)].decode()
