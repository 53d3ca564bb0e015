"""What processes send and receive, by name and family of sockets, against what they count themselves."""

import ctypes
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.kernel.ledger import attached, repeating
from tests.kernel.machine import Cgroup, Netns
from tests.kernel.objects import PAUSE, TICK, Change, build, is_caught
from tests.kernel.traffic import compiled, scaled
from tests.patience import SCALE

from sockledger.kernel.cgroups import CgroupRoot
from sockledger.kernel.datapath import DataPath, Parts
from sockledger.kernel.features import tells_calls
from sockledger.kernel.sums import TASK_TOTALS

TASKS = Parts(tcp=False, udp=False, tasks=True)
UNIX = Parts(tcp=False, udp=False)
PR_SET_NAME = 15
IP_RECVERR, MSG_ERRQUEUE = 11, 0x2000
LOCAL = 0x88B5  # an EtherType for experiments

pytestmark = pytest.mark.skipif(not tells_calls(), reason="this kernel has no sock_send_length (before 6.3)")

# sent bytes, send calls, received bytes, receive calls
Moved = tuple[int, ...]
Key = tuple[str, str]  # comm, family


def moved(path: DataPath, cgroup: Cgroup) -> dict[Key, Moved]:
    """Return what a cgroup's processes have moved."""
    table = path.sums[TASK_TOTALS]
    order = table.at("sent_bytes", "send_calls", "received_bytes", "receive_calls")
    found = {}
    for (cgroup_id, *comm, family, _), record in table.rows():
        if cgroup_id == cgroup.id and any(record[: len(order)]):
            name = b"".join(word.to_bytes(8, sys.byteorder) for word in comm).rstrip(b"\0").decode()
            found[name, path.labels.socket_family[family]] = tuple(record[member] for member in order)
    return found


def call(
    netns: Netns, cgroup: Cgroup, *, processes: int, at_once: int, threads: int, rounds: int
) -> dict[Key, Moved]:
    """Have processes send and receive in a cgroup; return what they say that they have moved."""
    binary = compiled("callers", "callers")
    with netns.entered(), cgroup.joined():
        done = subprocess.run(
            [str(binary), *map(str, (processes, at_once, threads, rounds))],
            capture_output=True,
            text=True,
            check=True,
        )
    lines = [line.split() for line in done.stdout.splitlines()]
    return {(comm, family): tuple(map(int, figures)) for comm, family, *figures in lines}


def by_family(figures: dict[Key, Moved]) -> dict[str, Moved]:
    found: dict[str, Moved] = {}
    for (_, family), each in figures.items():
        found[family] = tuple(map(sum, zip(found.get(family, (0,) * len(each)), each, strict=True)))
    return found


@contextmanager
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        yield near, far


def rename(name: str) -> None:
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode())


@contextmanager
def named_again() -> Iterator[None]:
    """This process with the name that it had, in the end."""
    comm = Path("/proc/self/comm")
    before = comm.read_text()
    try:
        yield
    finally:
        comm.write_text(before)


# Sends to itself for as long as it takes to be moved often, while a thread renames it; then says how much.
TALK = """
import itertools, pathlib, socket, threading, time
def rename():
    for number in itertools.count():
        pathlib.Path("/proc/self/comm").write_text("abcde"[number % 5] * (1 + number % 5 * 3))
near, far = socket.socketpair()
input()
threading.Thread(target=rename, daemon=True).start()
sent = calls = 0
end = time.monotonic() + 3
while time.monotonic() < end:
    for size in range(1, 50):
        sent += near.send(bytes(size))
        far.recv(100)
        calls += 1
print(sent, calls, flush=True)
input()
"""

# struct nlmsghdr, struct ifinfomsg: of the loopback, which is number 1
RTM_GETLINK_OF_LO = struct.pack("=IHHIIBxHiII", 32, 18, 1, 1, 0, 0, 0, 1, 0, 0)


@pytest.mark.parametrize("period", [None, 0.001])
def test_processes_that_come_and_go(
    below: CgroupRoot, client: Cgroup, netns: Netns, period: float | None
) -> None:
    """50 at a time, with threads, over TCP, UDP and AF_UNIX, while they are flushed or never."""
    with attached(below, parts=TASKS) as path, repeating(path.flush_tasks, period):
        truth = call(netns, client, processes=scaled(700), at_once=50, threads=4, rounds=12)
        path.flush()
        assert moved(path, client) == truth


def test_processes_of_milliseconds(below: CgroupRoot, client: Cgroup, netns: Netns) -> None:
    with attached(below, parts=TASKS) as path, repeating(path.flush_tasks, 0.001):
        truth = call(netns, client, processes=scaled(3000), at_once=50, threads=1, rounds=2)
        path.grace_period()
        assert moved(path, client) == truth, "they have ended, so without a flush"


def talk_under_names(cgroups: Sequence[Cgroup]) -> dict[int, dict[Key, Moved]]:
    """Go from cgroup to cgroup and from name to name, and send to oneself; return what was moved."""
    truth: dict[int, dict[Key, Moved]] = {cgroup.id: {} for cgroup in cgroups}
    with connected() as (near, far), named_again():
        for number in range(300):
            cgroup, name = cgroups[number % len(cgroups)], f"name{number // 2 % 5}"
            rename(name)
            with cgroup.joined():
                for size in range(1, 1 + number % 4):
                    sent = near.send(bytes(size * 100))
                    key, one = (name, "unix"), (sent, 1, len(far.recv(1000)), 1)
                    before = truth[cgroup.id].get(key, (0,) * len(one))
                    truth[cgroup.id][key] = tuple(map(sum, zip(before, one, strict=True)))
    return truth


def test_one_that_moves_and_renames_itself(below: CgroupRoot, client: Cgroup, server: Cgroup) -> None:
    """What is pending stays with the cgroup and the name that it had, also while it is flushed."""
    with attached(below, parts=TASKS) as path, repeating(path.flush_tasks, 0.001):
        truth = talk_under_names((client, server))
        path.flush()
        assert {cgroup.id: moved(path, cgroup) for cgroup in (client, server)} == truth


def test_one_that_is_moved_and_renamed_by_others(below: CgroupRoot, client: Cgroup, server: Cgroup) -> None:
    """Between any two of its instructions: no byte is lost or doubled, whichever it counts for."""
    with attached(below, parts=TASKS) as path, repeating(path.flush_tasks, 0.0), ExitStack() as stack:
        talking = stack.enter_context(subprocess.Popen([sys.executable, "-c", TALK], stdin=-1, stdout=-1))
        numbers = iter(range(1 << 30))

        def move() -> None:
            (client, server)[next(numbers) % 2].processes.write_text(str(talking.pid))

        assert talking.stdout
        assert talking.stdin
        python = Path(f"/proc/{talking.pid}/comm").read_text().strip()
        move()
        talking.stdin.write(b"begin\n")
        talking.stdin.flush()
        with repeating(move, 0.0):
            sent, calls = map(int, talking.stdout.readline().split())
        talking.stdin.close()
        talking.wait()
        path.grace_period()
        both = {**moved(path, client)}, moved(path, server)
        sums = [by_family(each)["unix"] for each in both]
        assert tuple(map(sum, zip(*sums, strict=True))) == (sent, calls, sent, calls)
        assert all(len(each) >= 2 for each in both), "it was caught in the middle"
        names = {name for each in both for name, _ in each}
        assert names <= {"a", "b" * 4, "c" * 7, "d" * 10, "e" * 13, "other", python}, (
            "and none is half another"
        )


def test_unix_alone(below: CgroupRoot, client: Cgroup, netns: Netns) -> None:
    """Processes and other families are not told apart, nor counted."""
    with attached(below, parts=UNIX) as path:
        truth = call(netns, client, processes=scaled(200), at_once=20, threads=4, rounds=8)
        path.flush()
        assert moved(path, client) == {("", "unix"): by_family(truth)["unix"]}


def test_too_many_names(below: CgroupRoot, client: Cgroup, netns: Netns) -> None:
    with attached(below, parts=TASKS, comms=3) as path, repeating(path.flush_tasks, 0.001):
        truth = call(netns, client, processes=scaled(400), at_once=50, threads=2, rounds=12)
        path.flush()
        found = moved(path, client)
        names = {name for name, _ in found}
        assert len(names) == 4
        assert "other" in names
        assert {key: figures for key, figures in found.items() if key[0] != "other"} == {
            key: figures for key, figures in truth.items() if key[0] in names
        }
        assert by_family(found) == by_family(truth)


def test_families(below: CgroupRoot, client: Cgroup, netns: Netns) -> None:
    with attached(below, parts=TASKS) as path, netns.entered(), client.joined(), named_again():
        rename("some")
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
            asked = netlink.send(RTM_GETLINK_OF_LO)
            told = len(netlink.recv(65536))
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(LOCAL)) as packet:
            packet.sendto(b"text", ("lo", LOCAL))
            assert packet.recv(100) == b"text"
        path.flush()
        assert moved(path, client) == {
            ("some", "netlink"): (asked, 1, told, 1),
            ("some", "other"): (4, 1, 4, 1),
        }


def test_an_error_queue(below: CgroupRoot, client: Cgroup, netns: Netns) -> None:
    """What comes back from there one has sent oneself."""
    with attached(below, parts=TASKS) as path, netns.entered(), client.joined(), named_again():
        rename("some")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
            udp.connect(("127.0.0.1", 9))
            udp.send(b"text")
            assert udp.recvmsg(10, 100, MSG_ERRQUEUE)[0] == b"text"
        path.flush()
        assert moved(path, client) == {("some", "ipv4"): (4, 1, 0, 0)}


def test_what_is_no_traffic(below: CgroupRoot, client: Cgroup) -> None:
    """Looks and failures; the end of a stream is a call, of no bytes. What is spliced out is not told of."""
    with attached(below, parts=TASKS) as path, client.joined(), named_again(), connected() as (near, far):
        rename("some")
        with pytest.raises(BlockingIOError):
            near.recv(10, socket.MSG_DONTWAIT)
        far.send(b"text")
        near.recv(10, socket.MSG_PEEK)
        near.recv(10)
        with Path("/etc/passwd").open("rb") as file:
            sent = os.sendfile(near.fileno(), file.fileno(), 0, 100)
        reading, writing = os.pipe()
        spliced = os.splice(far.fileno(), writing, 1000)
        far.close()
        assert near.recv(10) == b""
        for fd in (reading, writing):
            os.close(fd)
        path.flush()
        assert (sent, spliced) == (100, 100)
        assert moved(path, client) == {("some", "unix"): (4 + 100, 2, 4, 2)}


@pytest.mark.parametrize("reason", ["memory", "namespace"])
def test_written_through(
    reason: str,
    below: CgroupRoot,
    client: Cgroup,
    netns: Netns,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where there is no memory for a task's counts, or no walk would find it: exact at once, only slower."""
    image = None
    if reason == "memory":
        create = "bpf_task_storage_get(&tasks, task, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE)"
        image = build(tmp_path, (Change("task_hooks.h", f"= {create}", "= NULL"),))
    else:
        monkeypatch.setattr("sockledger.kernel.datapath.sees_all_processes", lambda: False)
    with attached(below, image, parts=TASKS) as path, connected() as (near, far):
        with client.joined(), named_again():
            rename("some")
            for _ in range(10):
                far.recv(near.send(b"text"))
        path.grace_period()
        assert moved(path, client) == {("some", "unix"): (40, 10, 40, 10)}
        truth = call(netns, client, processes=scaled(200), at_once=20, threads=4, rounds=8)
        path.grace_period()
        assert moved(path, client) == {**truth, ("some", "unix"): (40, 10, 40, 10)}
        calls = sum(figures[1] + figures[3] for figures in moved(path, client).values())
        assert path.lost_updates()["task_storage"] == (calls if reason == "memory" else 0)


def test_much_that_is_pending(below: CgroupRoot, client: Cgroup, tmp_path: Path) -> None:
    """Before there is too much for a word, the task itself brings it home; here each call but the last."""
    image = build(tmp_path, defines="-DPENDING_FULL=~0ULL")
    with attached(below, image, parts=TASKS) as path, connected() as (near, far), named_again():
        rename("some")
        with client.joined():
            for _ in range(10):
                far.recv(near.send(b"text"))
            path.grace_period()
            assert moved(path, client) == {("some", "unix"): (36, 9, 36, 9)}
        path.flush()
        assert moved(path, client) == {("some", "unix"): (40, 10, 40, 10)}


def test_no_room_for_totals(below: CgroupRoot, client: Cgroup, server: Cgroup) -> None:
    """What is new counts for no cgroup, under its family."""
    with attached(below, parts=TASKS) as path, connected() as (near, far):
        table = path.maps[TASK_TOTALS]
        room = table.max_entries - table.entries()
        for number in range(room):
            assert table.make(table.key.struct.pack(1 << 40 | number, 0, 0, 0, 0))
        with client.joined():
            far.recv(near.send(b"text"))
        path.flush()
        assert moved(path, client) == {}
        members = path.sums[TASK_TOTALS].at("sent_bytes", "send_calls", "received_bytes", "receive_calls")
        rows = {key: record for key, record in path.sums[TASK_TOTALS].rows() if not key[0] and any(record)}
        unix = next(number for number, name in path.labels.socket_family.items() if name == "unix")
        assert {key: tuple(record[member] for member in members) for key, record in rows.items()} == {
            (0, 0, 0, unix, 0): (4, 1, 4, 1)
        }
        assert path.lost_updates()["totals_full"] > 0


def test_others_are_not_counted(below: CgroupRoot, root: CgroupRoot) -> None:
    """Those that are not in the cgroup in which we count, whose processes the tracepoints tell of, too."""
    with attached(below, parts=TASKS) as path, connected() as (near, far):
        far.recv(near.send(b"text"))
        path.flush()
        assert not any(any(record) for _, record in path.sums[TASK_TOTALS].rows())


SLOW = Change("ledger.h", "/* Accesses that", f"{TICK}/* Accesses that")
WRITTEN = "	c->account = *account;\n"
LOCK = "	if (!c || __sync_lock_test_and_set(&c->locked, 1))\n"
LEADER = "*leader = READ_KERNEL(struct task_struct, task, group_leader);\n"
MUTANTS = {
    "lost at its end": (Change("task_hooks.h", "	if (c)\n		drain_task(c);\n", "	(void)c;\n"),),
    "goes with who is renamed": (Change("task_hooks.h", f"	drain_task(c);\n{WRITTEN}", WRITTEN),),
    "taken without an exchange": (
        SLOW,
        Change(
            "tasks.h",
            "		__u64 received = take(&c->pending[family][RECEIVE]);\n",
            "		__u64 received = READ_ONCE(c->pending[family][RECEIVE]);\n\n"
            f"		if (received) {{\n			{PAUSE}"
            "			WRITE_ONCE(c->pending[family][RECEIVE], 0);\n		}\n",
        ),
    ),
    "drained while its account is written": (
        SLOW,
        Change("task_hooks.h", LOCK, "	if (!c)\n"),
        Change(
            "tasks.h",
            "	struct task_account account = c->account;\n",
            "	struct task_account account = c->account;\n\n	bpf_loop(20000, tick, NULL, 0);\n",
        ),
    ),
    "a look is traffic": (Change("task_hooks.h", "(MSG_PEEK | MSG_ERRQUEUE)", "MSG_ERRQUEUE"),),
    "by its thread's name": (Change("task_hooks.h", LEADER, "*leader = task;\n"),),
}


@pytest.mark.skipif(SCALE > 1, reason="races take long in an emulator")
@pytest.mark.parametrize("name", MUTANTS)
def test_mutants(name: str, below: CgroupRoot, client: Cgroup, netns: Netns, tmp_path: Path) -> None:
    """Each of these changes is found by the truths above."""
    image = build(tmp_path, MUTANTS[name])

    def exact() -> bool:
        with attached(below, image, parts=TASKS) as path, repeating(path.flush_tasks, 0.001):
            truth = call(netns, client, processes=200, at_once=50, threads=4, rounds=12)
            names = talk_under_names((client,))[client.id]
            path.flush()
            return moved(path, client) == {**truth, **names}

    assert is_caught(exact, 2)
