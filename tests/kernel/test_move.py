"""Sums that are moved inside the kernel: every word arrives, once, whoever adds meanwhile or is killed."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tests.kernel.ledger import ALL_PARTS, NOTHING, attached, flush, flushing, totals_of
from tests.kernel.machine import run
from tests.kernel.traffic import Generator, scaled
from tests.patience import SCALE

from sockledger.errors import UserError
from sockledger.kernel.btf import Layout, describe, parse
from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath
from sockledger.kernel.filesystem import mount_bpffs
from sockledger.kernel.libbpf import Map, Object, Table
from sockledger.kernel.move import INDEX, Mover, SumsMap, move_all, words_by_name

ROUNDS = 1_000_000  # move.bpf.c
LARGEST = 2**64 - 1


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    made = tmp_path_factory.mktemp("move") / "move.bpf.o"
    run(
        *("clang", "-target", "bpf", "-mcpu=v3", "-g", "-O2", "-Wall", "-Werror"),
        *("-idirafter", f"/usr/include/{run('clang', '-print-multiarch').strip()}"),
        *("-c", str(Path(__file__).with_name("move.bpf.c")), "-o", str(made)),
    )
    return made.read_bytes()


@pytest.fixture
def maps(image: bytes) -> Iterator[Object]:
    with closing(Object(image, "test_move")) as opened:
        opened.load()
        yield opened


def sums_map(found: Map) -> SumsMap:
    try:
        return SumsMap(found, found.key, found.value)
    except ValueError:
        return SumsMap(found, INDEX, found.value)


def rows(table: Table) -> dict[bytes, bytes]:
    found = {}
    for keys, values in table.batches():
        for number in range(len(keys) // table.key_size):
            key = keys[number * table.key_size :][: table.key_size]
            found[key] = values[number * table.value_size :][: table.value_size]
    return found


def words(value: bytes) -> list[int]:
    return [int.from_bytes(value[at : at + 8], "little") for at in range(0, len(value), 8)]


def random_value(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def fill(table: Map, keys: list[bytes]) -> dict[bytes, bytes]:
    source = random.Random(table.name)
    given = {key: source.randbytes(table.value_size) for key in keys}
    for key, value in given.items():
        table.update(key, value)
    return given


def same(table: Table) -> dict[int, int]:
    return {word: word for word in range(table.value_size // 8)}


# ---- one entry


def test_every_word_of_the_largest_value(maps: Object) -> None:
    """Onto what is there already, with words that wrap around."""
    wide = maps.maps["wide"]
    first, second = (INDEX.pack(index=index) for index in range(2))
    value, before = random_value(1024), random_value(1024)[::-1]
    wide.update(first, value)
    wide.update(second, before)
    with closing(Mover(wide, wide, same(wide))) as mover:
        assert mover.move(first, second) is True
        assert wide.lookup(first) == bytes(1024)
        moved = wide.lookup(second)
        assert mover.move(first, second) is False
        assert wide.lookup(second) == moved
    assert moved is not None
    assert words(moved) == [(a + b) & LARGEST for a, b in zip(words(value), words(before), strict=True)]


def test_words_that_are_not_named_stay(maps: Object) -> None:
    wide = maps.maps["wide"]
    first, second = (INDEX.pack(index=index) for index in range(2))
    value = random_value(1024)
    wide.update(first, value)
    with closing(Mover(wide, wide, {0: 127, 127: 3})) as mover:
        assert mover.move(first, second)
    left, moved = wide.lookup_index(0), wide.lookup_index(1)
    assert words(left) == [0, *words(value)[1:127], 0]
    assert words(moved) == [0, 0, 0, words(value)[127], *[0] * 123, words(value)[0]]


def test_one_row_of_a_hash_into_another(maps: Object) -> None:
    old = sums_map(maps.maps["old"])
    gone, kept = old.key.pack(cgroup_id=LARGEST, zone=7), old.key.pack(cgroup_id=1)
    value = random_value(old.value.size)
    old.table.make(gone)
    old.table.make(kept)
    maps.maps["old"].update(gone, value)
    with closing(Mover(old.table, old.table, same(old.table))) as mover:
        assert mover.move(gone, kept)
    assert rows(old.table) == {gone: bytes(len(value)), kept: value}


def test_an_entry_that_is_missing(maps: Object) -> None:
    old = sums_map(maps.maps["old"])
    here, nowhere = old.key.pack(cgroup_id=1), old.key.pack(cgroup_id=2)
    value = random_value(old.value.size)
    maps.maps["old"].update(here, value)
    with closing(Mover(old.table, old.table, same(old.table))) as mover:
        for pair in ((here, nowhere), (nowhere, here)):
            with pytest.raises(KeyError, match="no entry"):
                mover.move(*pair)
    assert rows(old.table) == {here: value}


def test_no_room_for_the_key(maps: Object) -> None:
    long_key = Table("long", 41, 8)
    with pytest.raises(ValueError, match="a key of long or old is longer than 40 bytes"):
        Mover(long_key, maps.maps["old"], {})


def test_a_word_beyond_the_target(maps: Object) -> None:
    old = maps.maps["old"]
    with pytest.raises(
        UserError, match=r"the kernel refuses to move sums: .*outside of the allowed memory range"
    ):
        Mover(old, old, {0: old.value_size // 8})


def test_only_sums_are_moved(maps: Object) -> None:
    key = maps.maps["old"].key
    with pytest.raises(ValueError, match="struct old_key: protocol is no sum of 64 bits"):
        words_by_name(key, key)


# ---- while others add


def test_while_a_program_adds_to_both(maps: Object) -> None:
    old = sums_map(maps.maps["old"])
    source, target = (old.key.pack(cgroup_id=number) for number in (1, 2))
    old.table.make(source)
    old.table.make(target)
    runs = max(20 // SCALE, 2)

    def add() -> int:
        return sum(maps.programs["sl_add"].run(source + target) for _ in range(runs))

    moves = 0
    with closing(Mover(old.table, old.table, same(old.table))) as mover:
        with ThreadPoolExecutor(1) as pool:
            adding = pool.submit(add)
            while not adding.done():
                moves += mover.move(source, target)
        mover.move(source, target)
    assert adding.result() == runs * ROUNDS
    assert moves > runs  # so they met
    expected = old.value.pack(bytes=runs * ROUNDS * (ROUNDS - 1), packets=2 * runs * ROUNDS)
    assert rows(old.table) == {source: bytes(old.value.size), target: expected}


RETIRED = 1  # no cgroup's id: the hierarchy's root has it


def test_totals_under_traffic(below: CgroupRoot, generator: Generator) -> None:
    """Both cgroups' totals go to another key again and again, while packets and flushes add to them."""
    with attached(below) as path:
        totals = sums_map(path.maps["totals"])

        def retire(mover: Mover) -> None:
            for key in rows(totals.table):
                members = totals.key.unpack(key)
                if members["cgroup_id"] != RETIRED:
                    retired = totals.key.pack(**{**members, "cgroup_id": RETIRED})
                    assert totals.table.make(retired)
                    mover.move(key, retired)

        with closing(Mover(totals.table, totals.table, same(totals.table))) as mover:
            with flushing(path, 0.0), ThreadPoolExecutor(1) as pool:
                done = pool.submit(generator.run, "udp", scaled(4000))
                while not done.done():
                    retire(mover)
            flush(path)
            retire(mover)
        result = done.result()
        assert totals_of(path, generator.client.id) == totals_of(path, generator.server.id) == {}
        sides = [result.side("client"), result.side("server")]
        expected = {
            key: sides[0].get(key, NOTHING).plus(sides[1].get(key, NOTHING))
            for key in sides[0].keys() | sides[1].keys()
        }
        assert totals_of(path, RETIRED) == expected


# ---- a whole map


def add_up(members: Iterable[tuple[bytes, dict[str, int]]]) -> dict[bytes, dict[str, int]]:
    found: dict[bytes, dict[str, int]] = {}
    for key, values in members:
        row = found.setdefault(key, dict.fromkeys(values, 0))
        for name, value in values.items():
            row[name] = (row[name] + value) & LARGEST
    return found


def decoded(found: SumsMap) -> dict[bytes, dict[str, int]]:
    return {key: found.value.unpack(value) for key, value in rows(found.table).items()}


def no_overflow(key: bytes) -> bytes:
    raise AssertionError(f"no room for {key.hex()}")


# What both layouts in move.bpf.c have.
COMMON_KEY = ("cgroup_id", "protocol", "family")
COMMON = ("bytes", "packets", *(f"measured[{row}].{name}" for row in range(2) for name in ("count", "sum")))


def translated(source: SumsMap, target: SumsMap, key: bytes, value: bytes) -> tuple[bytes, dict[str, int]]:
    members, sums = source.key.unpack(key), source.value.unpack(value)
    none = {field.name: 0 for field in target.value.fields}
    return target.key.pack(**{name: members[name] for name in COMMON_KEY}), {
        **none,
        **{name: sums[name] for name in COMMON},
    }


def test_into_another_layout_and_back(maps: Object) -> None:
    old, new = (sums_map(maps.maps[name]) for name in ("old", "new"))
    keys = [
        old.key.pack(cgroup_id=cgroup_id, protocol=protocol, family=family, zone=zone)
        for cgroup_id in (1, 2, LARGEST)
        for protocol in (0, 0xFFFF)
        for family in (0, 0xFFFE)
        for zone in (0, 1, 0xFFFFFFFF)
    ]
    given = fill(maps.maps["old"], keys)
    expected = add_up(translated(old, new, *row) for row in given.items())
    assert len(expected) == len(keys) // 3
    left = {key: {**old.value.unpack(value), **dict.fromkeys(COMMON, 0)} for key, value in given.items()}
    for _ in range(2):  # to do it again changes nothing
        assert move_all(old, new, new, no_overflow) == 0
        assert decoded(new) == expected
        assert decoded(old) == left

    maps.maps["old"].clear()
    assert move_all(new, old, old, no_overflow) == 0
    assert decoded(old) == add_up(translated(old, old, *row) for row in given.items())
    assert set(rows(new.table).values()) == {bytes(new.value.size)}


def test_into_a_full_map(maps: Object) -> None:
    """What finds no room is in the overflow's entry, by a member of its key."""
    old, new, other = (sums_map(maps.maps[name]) for name in ("old", "new", "other"))
    keys = [old.key.pack(cgroup_id=number + 1, family=number % 8) for number in range(3000)]
    given = fill(maps.maps["old"], keys)

    def by_family(key: bytes) -> bytes:
        return INDEX.pack(index=new.key.unpack(key)["family"])

    assert move_all(old, new, other, by_family) == 2000
    expected = dict(translated(old, new, *row) for row in given.items())
    found = decoded(new)
    assert len(found) == 1000
    assert found == {key: expected[key] for key in found}
    outside = add_up((by_family(key), row) for key, row in expected.items() if key not in found)
    assert decoded(other) == outside
    assert move_all(old, new, other, by_family) == 0
    assert (decoded(new), decoded(other)) == (found, outside)


def test_into_a_full_map_with_its_own_overflow(maps: Object) -> None:
    """As maps of sums by cgroup have it, at key 0."""
    old, new = (sums_map(maps.maps[name]) for name in ("old", "new"))
    nobody = bytes(new.key.size)
    new.table.make(nobody)
    given = fill(maps.maps["old"], [old.key.pack(cgroup_id=number) for number in range(1200)])
    assert move_all(old, new, new, lambda _: nobody) == 200
    expected = dict(translated(old, new, *row) for row in given.items())
    found = decoded(new)
    assert found.keys() < expected.keys()
    aside = [row for key, row in expected.items() if key not in found or key == nobody]
    there = {key: expected[key] for key in found}
    assert found == there | add_up((nobody, row) for row in aside)


def test_an_array_into_a_shorter_one(maps: Object) -> None:
    other, wide = sums_map(maps.maps["other"]), maps.maps["wide"]
    shorter = SumsMap(wide, INDEX, Layout("wide", wide.value_size, other.value.fields))
    first, second, *_ = keys = [INDEX.pack(index=index) for index in range(8)]
    given = fill(maps.maps["other"], keys)
    assert move_all(other, shorter, shorter, lambda _: first) == 6
    assert decoded(shorter) == add_up(
        (second if key == second else first, other.value.unpack(value)) for key, value in given.items()
    )


CARRIED = (
    *("totals", "overflow", "tcp_totals", "listen_totals", "tcp_histograms", "udp_totals"),
    *("node_totals", "lost"),
)


def unattached(root: CgroupRoot, cgroups: int) -> DataPath:
    return DataPath(root, cgroups=cgroups, sockets=1, connections=1, parts=ALL_PARTS)


def test_all_sums_into_maps_of_other_limits(root: CgroupRoot) -> None:
    with closing(unattached(root, 300)) as before, closing(unattached(root, 700)) as after:
        for name in CARRIED:
            source, target = sums_map(before.maps[name]), sums_map(after.maps[name])
            keys = list(rows(source.table))
            if source.key is not INDEX:
                first = source.key.fields[0].name
                keys += [source.key.pack(**{first: number}) for number in range(1, 300)]
            given = fill(before.maps[name], keys)
            assert move_all(source, target, target, no_overflow) == 0
            assert rows(target.table) == given
            assert set(rows(source.table).values()) == {bytes(source.value.size)}


def test_descriptions_fit_into_symbolic_links(root: CgroupRoot, tmp_path: Path) -> None:
    mount_bpffs(tmp_path)
    try:
        with closing(unattached(root, 1)) as path:
            for name in CARRIED:
                found = sums_map(path.maps[name])
                link = tmp_path / name
                link.symlink_to(f"{describe(found.key)}/{describe(found.value)}")
                for text, layout in zip(
                    str(link.readlink()).split("/"), (found.key, found.value), strict=True
                ):
                    assert describe(parse(text)) == describe(layout) == text
    finally:
        run("umount", str(tmp_path))


# ---- whoever is killed


def test_killed_at_any_moment(maps: Object, image: bytes) -> None:
    here = maps.maps["other"]
    with closing(Object(image, "test_there")) as second:
        second.load()
        there = second.maps["other"]
        given = fill(here, list(rows(here)))
        fds = here.fd, there.fd

        @contextmanager
        def moving(how: str) -> Iterator["subprocess.Popen[bytes]"]:
            command = [sys.executable, str(Path(__file__).with_name("moves.py")), *map(str, fds), how]
            with subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=fds) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"
                yield process

        halfway = 0
        for _ in range(max(40 // SCALE, 4)):
            with moving("again") as process:
                time.sleep(random.uniform(0, 0.01))
                process.kill()
            assert process.returncode == -signal.SIGKILL
            left, moved = rows(here), rows(there)
            halfway += any(map(any, left.values())) and any(map(any, moved.values()))
            for key, value in given.items():
                both = zip(words(left[key]), words(moved[key]), strict=True)
                assert [(a + b) & LARGEST for a, b in both] == words(value)
        assert halfway
        with moving("once") as process:
            process.wait()
        assert process.returncode == 0
        assert set(rows(here).values()) == {bytes(here.value_size)}
        assert rows(there) == given
