"""The configuration file: what it may say, and the exact words for what it may not."""

import math
import os
import re
import warnings
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockledger.config import (
    Attach,
    Config,
    ConfigError,
    Engine,
    Flush,
    Kubernetes,
    Labels,
    Limits,
    Persist,
    Rule,
    Tags,
    Workloads,
    load,
    load_networks,
)
from sockledger.workloads.naming import LABELS

INTERVALS = "100ms to 1h, written as 500ms, 10s, 1m or 1m30s"
GLOBS = "absolute globs of cgroup paths, such as /system.slice/*.service"
CGROUPS = "a whole number from 1 to 1000000"
SOCKETS = "a whole number from 1 to 10000000"
MATCH = (
    "a regular expression with groups called namespace, pod, container, unit, "
    "such as ^/jobs/(?P<container>[0-9]+)"
)
SECTIONS = (
    "attach, flush, limits, persist, workloads, labels, aggregate, include, exclude, networks, "
    "networks_file, service_networks, node_networks, tags"
)
CLASS_NAMES = "names of letters, digits, _, . and -, up to 63, with lists of networks"
ROOT = f"the keys {SECTIONS}"


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config") / "x.yml"


def load_text(path: Path, text: str) -> Config:
    path.write_bytes(text.encode())
    return load(path)


def errors_of(path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_text(path, text)
    return str(caught.value).replace(f"{path}:", "").splitlines()


def test_defaults() -> None:
    assert load(None) == Config(
        Attach(meters=()),
        Flush(interval=10.0),
        Limits(cgroups=8192, sockets=65536),
        Persist(gone=600.0, lease=86400.0),
    )


@pytest.mark.parametrize(
    "text",
    ["", "\n# nothing\n", "---\n", "\ufeff", "{}", "attach:\nflush:\nlimits:\n", "attach: {meters: }"],
)
def test_empty_is_default(scratch: Path, text: str) -> None:
    assert load_text(scratch, text) == Config()


def test_all_keys(scratch: Path) -> None:
    text = """\
attach:
  meters: [/a.slice/*, "/b [1]/?"]
flush: {interval: 1m30s}
limits: {cgroups: 7, sockets: 8, connections: 9, label_sets: 10, workloads: 11}
labels: {namespace: auto, pod: never, container: never, unit: never, cgroup: always}
aggregate: pod
include: [/a.slice, "/b/**/c"]
exclude: [/a.slice/d]
networks: {zone-b: [10.2.0.0/16, "2001:db8:2::/48"], internet: [0.0.0.0/0]}
service_networks: [10.96.0.0/12]
node_networks: [host, subnet]
persist: {gone: 5m, lease: 1h}
workloads:
  rules:
  - match: /(?P<unit>a)/
  - {match: "(?P<namespace>b)(?P<pod>c)(?P<container>d)?"}
  docker: {socket: /run/docker.sock}
  podman: {socket: /run/podman/podman.sock}
  kubernetes:
    kubeconfig: /etc/kubernetes/kubelet.conf
    node: worker-1.example.org
    pod_labels: [app, app.kubernetes.io/name]
    pod_annotations: [example.org/Team_1]
tags: {owner: 7, group: root}
"""
    assert load_text(scratch, text) == Config(
        Attach(meters=("/a.slice/*", "/b [1]/?")),
        Flush(interval=90.0),
        Limits(cgroups=7, sockets=8, connections=9, label_sets=10, workloads=11),
        Persist(gone=300.0, lease=3600.0),
        Workloads(
            (
                Rule(re.compile("/(?P<unit>a)/")),
                Rule(re.compile("(?P<namespace>b)(?P<pod>c)(?P<container>d)?")),
            ),
            docker=Engine(Path("/run/docker.sock")),
            podman=Engine(Path("/run/podman/podman.sock")),
            kubernetes=Kubernetes(
                Path("/etc/kubernetes/kubelet.conf"),
                "worker-1.example.org",
                ("app", "app.kubernetes.io/name"),
                ("example.org/Team_1",),
            ),
        ),
        Labels("auto", "never", "never", "never", "always"),
        "pod",
        ("/a.slice", "/b/**/c"),
        ("/a.slice/d",),
        {
            "zone-b": (ip_network("10.2.0.0/16"), ip_network("2001:db8:2::/48")),
            "internet": (ip_network("0.0.0.0/0"),),
        },
        None,
        (ip_network("10.96.0.0/12"),),
        ("host", "subnet"),
        Tags(owner=7, group=0),
    )


def test_networks_in_a_file_of_their_own(scratch: Path) -> None:
    assert not load(None).has_networks
    file = scratch.with_name("networks.yml")
    file.write_text("a: [10.0.0.0/8]")
    assert load_text(scratch, f"networks_file: {file}").networks_file == file
    file.write_text("a: [10.0.0.0/99]")
    assert errors_of(scratch, f"networks_file: {file}")[0].startswith(f"{file}:1: a[0]: ")
    scratch.write_text("a: [10.0.0.0/8]\nb:\n")
    assert load_networks(scratch) == {"a": (ip_network("10.0.0.0/8"),), "b": ()}
    scratch.write_text("{}")
    assert load_networks(scratch) == {}
    scratch.write_text("a: [x]")
    with pytest.raises(ConfigError, match=r"x\.yml:1: a\[0\]: \"x\" is no network"):
        load_networks(scratch)
    scratch.write_text("# nothing yet")
    with pytest.raises(ConfigError, match=r"x\.yml:1: top level: nothing is there; allowed: \{\} for no"):
        load_networks(scratch)


def test_networks_in_a_pipe(tmp_path: Path) -> None:
    """To open it would wait for somebody who writes."""
    os.mkfifo(tmp_path / "pipe")
    for read in (load, load_networks):
        with pytest.raises(ConfigError, match="pipe: is a pipe; give a YAML file"):
            read(tmp_path / "pipe")


def test_networks_in_a_file_with_a_name_that_is_too_long(scratch: Path) -> None:
    (error,) = errors_of(scratch, f"networks_file: /{'a' * 300}")
    assert "cannot be read: File name too long" in error


@pytest.mark.parametrize(("text", "seconds"), [("1s", 1.0), ("24h", 86400.0)])
def test_bounds_of_gone(scratch: Path, text: str, seconds: float) -> None:
    assert load_text(scratch, f"persist: {{gone: {text}}}").persist.gone == seconds


@pytest.mark.parametrize(("text", "seconds"), [("1m", 60.0), ("365d", 365 * 86400.0)])
def test_bounds_of_lease(scratch: Path, text: str, seconds: float) -> None:
    assert load_text(scratch, f"persist: {{lease: {text}}}").persist.lease == seconds


@pytest.mark.parametrize(
    ("key", "text", "allowed"),
    [
        ("gone", "999ms", "1s to 1d, written as 30s, 10m or 1h"),
        ("gone", "24h1ms", "1s to 1d, written as 30s, 10m or 1h"),
        ("lease", "59s", "1m to 1y, written as 90m, 24h or 7d"),
        ("lease", "366d", "1m to 1y, written as 90m, 24h or 7d"),
    ],
)
def test_duration_out_of_range(scratch: Path, key: str, text: str, allowed: str) -> None:
    assert errors_of(scratch, f"persist: {{{key}: {text}}}") == [
        f'1: persist.{key}: "{text}" is out of range; allowed: {allowed}'
    ]


def test_a_lease_that_would_end_between_flushes(scratch: Path) -> None:
    assert errors_of(scratch, "persist: {lease: 59m}\nflush: {interval: 30m}") == [
        "1: persist.lease: is shorter than two of flush.interval; allowed: longer"
    ]


@pytest.mark.parametrize("number", [1, 1_000_000])
def test_bounds_of_cgroups(scratch: Path, number: int) -> None:
    assert load_text(scratch, f"limits: {{cgroups: {number}}}").limits.cgroups == number


@pytest.mark.parametrize("number", [1, 10_000_000])
def test_bounds_of_sockets(scratch: Path, number: int) -> None:
    assert load_text(scratch, f"limits: {{sockets: {number}}}").limits.sockets == number


@pytest.mark.parametrize(
    ("text", "seconds"), [("100ms", 0.1), ("1h", 3600.0), ("59m60s", 3600.0), ("0h1s", 1.0)]
)
def test_bounds_of_interval(scratch: Path, text: str, seconds: float) -> None:
    assert load_text(scratch, f"flush: {{interval: {text}}}").flush.interval == seconds


@given(
    st.integers(0, 100),
    st.integers(0, 100),
    st.integers(0, 4000),
    st.integers(0, 4_000_000),
    st.integers(0, 15),
)
def test_interval_is_the_sum_of_its_parts(
    scratch: Path, h: int, m: int, s: int, ms: int, given_parts: int
) -> None:
    parts = [(h, "h", 3600.0), (m, "m", 60.0), (s, "s", 1.0), (ms, "ms", 0.001)]
    chosen = [part for bit, part in enumerate(parts) if given_parts >> bit & 1]
    text = "".join(f"{number}{unit}" for number, unit, _ in chosen)
    seconds = math.fsum(number * factor for number, _, factor in chosen)
    if text and 0.1 <= seconds <= 3600:
        assert load_text(scratch, f"flush: {{interval: '{text}'}}").flush.interval == pytest.approx(seconds)
    else:
        (error,) = errors_of(scratch, f"flush: {{interval: '{text}'}}")
        assert ("is out of range" if text else "is not a duration") in error


_USERS, _GROUPS = (f"a {kind}'s name, or a number from 0 to 4294967294" for kind in ("user", "group"))
RULES = {
    "owner is nobody's name": (
        "tags: {owner: no-such-user}",
        '1: tags.owner: "no-such-user" is no user of this machine',
        _USERS,
    ),
    "group is nobody's name": (
        'tags: {group: "0"}',
        '1: tags.group: "0" is no group of this machine',
        _GROUPS,
    ),
    "owner is too large": (
        "tags: {owner: 4294967295}",
        "1: tags.owner: 4294967295 is no user of this machine",
        _USERS,
    ),
    "group is negative": ("tags: {group: -1}", "1: tags.group: -1 is no group of this machine", _GROUPS),
    "group is empty": (
        "tags: {group: }",
        "1: tags.group: an empty value is no group of this machine",
        _GROUPS,
    ),
    "tags are too many": (
        "limits: {tags: 65}",
        "1: limits.tags: 65 is out of range",
        "a whole number from 1 to 64",
    ),
    "root is a list": ("- a", "1: top level: a list is not a mapping", ROOT),
    "root is a string": ("\nhello", '2: top level: "hello" is not a mapping', ROOT),
    "section is a mapping by another tag": (
        "flush: !!int {a: 1}",
        "1: flush: a mapping with tag tag:yaml.org,2002:int is not a mapping",
        "the keys interval",
    ),
    "list is one by another tag": (
        "attach: {meters: !x [/a]}",
        "1: attach.meters: a list with tag !x is not a list",
        f"a list of {GLOBS}",
    ),
    "section is a list": ("flush: [1]", "1: flush: a list is not a mapping", "the keys interval"),
    "unknown section": ("programs: {}", "1: programs: unknown key", SECTIONS),
    "networks that are a list": (
        "networks: [10.0.0.0/8]",
        "1: networks: a list is not a mapping",
        CLASS_NAMES,
    ),
    "class that is there already": (
        "networks: {other: [10.0.0.0/8]}",
        "1: networks.other: is a class that is there already",
        CLASS_NAMES,
    ),
    "class that is none": (
        'networks: {"a b": [10.0.0.0/8]}',
        "1: networks.a b: is no name for a class",
        CLASS_NAMES,
    ),
    "class that is there twice": (
        "networks:\n  a: []\n  a: []",
        "3: networks.a: duplicate key",
        CLASS_NAMES,
    ),
    "network that is none": (
        "networks: {a: [10.0.0.0/33]}",
        "1: networks.a[0]: \"10.0.0.0/33\" is no network ('10.0.0.0/33' does not appear to be an IPv4 or "
        "IPv6 network)",
        "networks, such as 10.0.0.0/8 or 2001:db8::/32",
    ),
    "network with an address's bits": (
        "service_networks: [10.0.0.1/8]",
        '1: service_networks[0]: "10.0.0.1/8" is no network (10.0.0.1/8 has host bits set)',
        "networks, such as 10.0.0.0/8 or 2001:db8::/32",
    ),
    "network of IPv4's addresses in IPv6's": (
        'service_networks: ["::ffff:10.0.0.0/104"]',
        '1: service_networks[0]: "::ffff:10.0.0.0/104" is for IPv4, whose packets have IPv4\'s addresses',
        "networks, such as 10.0.0.0/8 or 2001:db8::/32",
    ),
    "network with a scope": (
        'service_networks: ["fe80::%eth0/64"]',
        '1: service_networks[0]: "fe80::%eth0/64" has a scope, which packets do not tell',
        "networks, such as 10.0.0.0/8 or 2001:db8::/32",
    ),
    "network of two classes": (
        "flush: {}\nnetworks:\n  a: [10.0.0.0/8]\n  b: [10.1.0.0/16, 10.0.0.0/8]",
        "3: networks: 10.0.0.0/8 is in a and in b",
        "each network in one class",
    ),
    "more classes than names are kept for": (
        "networks:\n" + "".join(f"  n{number}: []\n" for number in range(513)),
        "2: networks: there are 513 classes",
        "up to 512",
    ),
    "networks here and there": (
        "networks: {a: [10.0.0.0/8]}\nnetworks_file: /a",
        "1: networks_file: there are networks, too",
        "one of both",
    ),
    "networks of a node that are none": (
        "node_networks: [host, lan]",
        '1: node_networks[1]: "lan" is none of them',
        "host, subnet",
    ),
    "misspelt section": ("limits: {}\natach: {}", "2: atach: unknown key (did you mean attach?)", SECTIONS),
    "misspelt key": (
        "flush:\n  intervall: 1s",
        "2: flush.intervall: unknown key (did you mean interval?)",
        "interval",
    ),
    "key is a number": ("1: a", "1: 1: unknown key", SECTIONS),
    "key is a list": ("? [a]\n: b", "1: a list: unknown key", SECTIONS),
    "key of a merge": ("<<: {flush: {}}", "1: <<: unknown key", SECTIONS),
    "key in two lines": ('"a\\nb": 1', "1: a\\nb: unknown key", SECTIONS),
    "key too long to show": (f"{'k' * 100}: 1", f"1: {'k' * 60}...: unknown key", SECTIONS),
    "duplicate section": (
        "flush: {}\nlimits: {}\nflush: {}",
        "3: flush: duplicate key, first on line 1",
        "each key once",
    ),
    "duplicate key": (
        "flush:\n  interval: 1s\n  interval: 1s",
        "3: flush.interval: duplicate key, first on line 2",
        "each key once",
    ),
    "meters is a string": (
        "attach: {meters: /a}",
        '1: attach.meters: "/a" is not a list',
        f"a list of {GLOBS}",
    ),
    "meter is a number": ("attach: {meters: [1]}", "1: attach.meters[0]: 1 is not a string", GLOBS),
    "meter is a list": ("attach: {meters: [[]]}", "1: attach.meters[0]: a list is not a string", GLOBS),
    "meter is null": (
        "attach:\n  meters:\n  - /a\n  -",
        "4: attach.meters[1]: an empty value is not a string",
        GLOBS,
    ),
    "meter is empty": ("attach: {meters: ['']}", '1: attach.meters[0]: "" does not begin with "/"', GLOBS),
    "meter is relative": (
        "attach:\n  meters:\n  - /ok\n  - a/*",
        '4: attach.meters[1]: "a/*" does not begin with "/"',
        GLOBS,
    ),
    "meter is the root": (
        "attach: {meters: [/]}",
        '1: attach.meters[0]: "/" is the root, and globs are of what is below it',
        GLOBS,
    ),
    "meter with NUL": (
        'attach: {meters: ["/a\\0"]}',
        '1: attach.meters[0]: "/a\\x00" has characters that cannot be printed, for which "?" may stand',
        GLOBS,
    ),
    "interval without unit": ("flush: {interval: 10}", "1: flush.interval: 10 is not a duration", INTERVALS),
    "interval is null": (
        "flush: {interval: }",
        "1: flush.interval: an empty value is not a duration",
        INTERVALS,
    ),
    "interval is empty": ("flush: {interval: ''}", '1: flush.interval: "" is not a duration', INTERVALS),
    "interval in wrong order": (
        "flush: {interval: 1s1m}",
        '1: flush.interval: "1s1m" is not a duration',
        INTERVALS,
    ),
    "interval is a mapping": (
        "flush: {interval: {}}",
        "1: flush.interval: a mapping is not a duration",
        INTERVALS,
    ),
    "interval too short": ("flush: {interval: 99ms}", '1: flush.interval: "99ms" is out of range', INTERVALS),
    "interval too long": (
        "flush: {interval: 1h1ms}",
        '1: flush.interval: "1h1ms" is out of range',
        INTERVALS,
    ),
    "interval absurdly long": (
        f"flush: {{interval: {'9' * 5000}y}}",
        f'1: flush.interval: "{"9" * 60}..." is out of range',
        INTERVALS,
    ),
    "cgroups is null": (
        "limits:\n  cgroups:",
        "2: limits.cgroups: an empty value is not a whole number",
        CGROUPS,
    ),
    "cgroups is a string": (
        "limits: {cgroups: '5'}",
        '1: limits.cgroups: "5" is not a whole number',
        CGROUPS,
    ),
    "cgroups is a float": ("limits: {cgroups: 1.5}", "1: limits.cgroups: 1.5 is not a whole number", CGROUPS),
    "cgroups is a boolean": (
        "limits: {cgroups: true}",
        "1: limits.cgroups: true is not a whole number",
        CGROUPS,
    ),
    "cgroups is octal": ("limits: {cgroups: 010}", "1: limits.cgroups: 010 is not a whole number", CGROUPS),
    "cgroups is sexagesimal": (
        "limits: {cgroups: 1:40}",
        "1: limits.cgroups: 1:40 is not a whole number",
        CGROUPS,
    ),
    "cgroups is zero": ("limits: {cgroups: 0}", "1: limits.cgroups: 0 is out of range", CGROUPS),
    "cgroups is negative": ("limits: {cgroups: -1}", "1: limits.cgroups: -1 is out of range", CGROUPS),
    "cgroups too great": (
        "limits: {cgroups: 1000001}",
        "1: limits.cgroups: 1000001 is out of range",
        CGROUPS,
    ),
    "cgroups absurdly great": (
        f"limits: {{cgroups: {'9' * 5000}}}",
        f"1: limits.cgroups: {'9' * 60}... is out of range",
        CGROUPS,
    ),
    "value with a tag": (
        "limits: {cgroups: !!python/name:os.system 5}",
        "1: limits.cgroups: 5 is not a whole number",
        CGROUPS,
    ),
    "sockets is null": (
        "limits:\n  cgroups: 5\n  sockets:",
        "3: limits.sockets: an empty value is not a whole number",
        SOCKETS,
    ),
    "sockets is a string": (
        "limits: {sockets: '5'}",
        '1: limits.sockets: "5" is not a whole number',
        SOCKETS,
    ),
    "sockets with a unit": (
        "limits: {sockets: 128k}",
        '1: limits.sockets: "128k" is not a whole number',
        SOCKETS,
    ),
    "sockets with underscores": (
        "limits: {sockets: 65_536}",
        "1: limits.sockets: 65_536 is not a whole number",
        SOCKETS,
    ),
    "sockets is zero": ("limits: {sockets: 0}", "1: limits.sockets: 0 is out of range", SOCKETS),
    "sockets is negative": ("limits: {sockets: -1}", "1: limits.sockets: -1 is out of range", SOCKETS),
    "sockets too great": (
        "limits: {sockets: 10000001}",
        "1: limits.sockets: 10000001 is out of range",
        SOCKETS,
    ),
    "sockets absurdly great": (
        f"limits: {{sockets: {'9' * 5000}}}",
        f"1: limits.sockets: {'9' * 60}... is out of range",
        SOCKETS,
    ),
    "rules are strings": (
        "workloads: {rules: [/a/]}",
        '1: workloads.rules[0]: "/a/" is not a mapping',
        "the keys match",
    ),
    "rules are a mapping": (
        "workloads: {rules: {match: 5}}",
        "1: workloads.rules: a mapping is not a list",
        "a list of mappings with the keys match",
    ),
    "rule without a match": (
        "workloads:\n  rules:\n  - {}",
        "3: workloads.rules[0]: lacks a key",
        "with match",
    ),
    "rule is a number": (
        "workloads: {rules: [{match: 5}]}",
        "1: workloads.rules[0].match: 5 is not a string",
        MATCH,
    ),
    "rule is no regular expression": (
        "workloads: {rules: [{match: (a}]}",
        '1: workloads.rules[0].match: "(a" is no regular expression (missing ), unterminated subpattern at '
        "position 0)",
        MATCH,
    ),
    "rule without a group": (
        "workloads: {rules: [{match: (a)}]}",
        '1: workloads.rules[0].match: "(a)" has no group that is called as a label',
        MATCH,
    ),
    "rule for another label": (
        "workloads: {rules: [{match: '(?P<pod>a)(?P<cgroup>b)'}]}",
        '1: workloads.rules[0].match: "(?P<pod>a)(?P<cgroup>b)" has a group cgroup, which is no label',
        MATCH,
    ),
    "kubernetes without a kubeconfig": (
        "workloads:\n  kubernetes:\n    pod_labels: [app]",
        "3: workloads.kubernetes: lacks a key",
        "with kubeconfig",
    ),
    "kubeconfig that is no path": (
        "workloads: {kubernetes: {kubeconfig: incluster}}",
        '1: workloads.kubernetes.kubeconfig: "incluster" does not begin with "/"',
        "in-cluster, or an absolute path",
    ),
    "node that is none": (
        "workloads: {kubernetes: {kubeconfig: in-cluster, node: Worker}}",
        '1: workloads.kubernetes.node: "Worker" is no name that a node may have',
        "the name of a node, such as worker-1.example.org",
    ),
    "label that is none": (
        "workloads: {kubernetes: {kubeconfig: in-cluster, pod_labels: [app, a/b/c]}}",
        '1: workloads.kubernetes.pod_labels[1]: "a/b/c" is no key that a pod may have',
        "keys of pods' labels, such as app.kubernetes.io/name",
    ),
    "annotation that is none": (
        'workloads: {kubernetes: {kubeconfig: in-cluster, pod_annotations: ["*"]}}',
        '1: workloads.kubernetes.pod_annotations[0]: "*" is no key that a pod may have',
        "keys of pods' annotations, such as app.kubernetes.io/name",
    ),
    "labels of one name": (
        "workloads:\n  kubernetes:\n    kubeconfig: in-cluster\n    pod_labels: [a.b/c, d, a.b-c]",
        "4: workloads.kubernetes.pod_labels: a.b/c and a.b-c are both called label_a_b_c",
        "one of them",
    ),
    "socket that is no path": (
        "workloads: {docker: {socket: tcp://localhost:2375}}",
        '1: workloads.docker.socket: "tcp://localhost:2375" does not begin with "/"',
        "an absolute path, such as /run/docker.sock",
    ),
    "socket that is a number": (
        "workloads: {podman: {socket: 1}}",
        "1: workloads.podman.socket: 1 is not a string",
        "an absolute path, such as /run/docker.sock",
    ),
    "socket with a NUL": (
        'workloads: {podman: {socket: "/a\\0"}}',
        '1: workloads.podman.socket: "/a\\x00" has a NUL',
        "an absolute path, such as /run/docker.sock",
    ),
    "socket with half a character": (
        'workloads: {podman: {socket: "/a\\ud800"}}',
        '1: workloads.podman.socket: "/a\\ud800" has a character that no path can have',
        "an absolute path, such as /run/docker.sock",
    ),
    "level that is none": (
        "aggregate: node",
        '1: aggregate: "node" is none of them',
        "leaf, container, pod, unit, or a whole number from 1 to 64",
    ),
    "level out of range": (
        "aggregate: 0",
        "1: aggregate: 0 is out of range",
        "leaf, container, pod, unit, or a whole number from 1 to 64",
    ),
    "label with a path always": (
        "labels: {pod: always}",
        '1: labels.pod: "always" is none of them',
        "auto, never",
    ),
    "label that is no choice": (
        "labels: {cgroup: yes}",
        "1: labels.cgroup: yes is none of them",
        "auto, always, never",
    ),
    "included root": (
        "include: [/]",
        '1: include[0]: "/" is the root, and globs are of what is below it',
        GLOBS,
    ),
    "excluded without a list": (
        "exclude: /a",
        '1: exclude: "/a" is not a list',
        f"a list of {GLOBS}",
    ),
    "recursive alias": (
        "&a flush: &b {interval: *b}",
        "1: flush.interval: a mapping is not a duration",
        INTERVALS,
    ),
}


@pytest.mark.parametrize(("text", "wrong", "allowed"), RULES.values(), ids=RULES)
def test_rule(scratch: Path, text: str, wrong: str, allowed: str) -> None:
    assert errors_of(scratch, text) == [f"{wrong}; allowed: {allowed}"]


def test_a_rule_with_a_class_that_python_does_not_know(scratch: Path) -> None:
    with warnings.catch_warnings(action="ignore"):  # as users have it
        assert errors_of(scratch, "workloads: {rules: [{match: '(?P<pod>[[:alnum:]]+)'}]}") == [
            '1: workloads.rules[0].match: "(?P<pod>[[:alnum:]]+)" is no regular expression '
            f"(Possible nested set at position 9); allowed: {MATCH}"
        ]


def test_a_rule_may_name_each_label(scratch: Path) -> None:
    groups = "".join(f"(?P<{label}>.)" for label in LABELS[:-1])
    (rule,) = load_text(scratch, f"workloads: {{rules: [{{match: '{groups}'}}]}}").workloads.rules
    match = rule.match.search("/abcd")
    assert match is not None
    assert match.groupdict() == dict(zip(LABELS, "/abc", strict=False))


def test_all_errors_are_told_by_line(scratch: Path) -> None:
    assert errors_of(
        scratch, "flush: &f\n  interval: 1\n  a: 1\nlimits: {cgroups: x,\n  sockets: 0}\nattach: *f"
    ) == [
        f"2: flush.interval: 1 is not a duration; allowed: {INTERVALS}",
        "2: attach.interval: unknown key; allowed: meters",
        "3: flush.a: unknown key; allowed: interval",
        "3: attach.a: unknown key; allowed: meters",
        f'4: limits.cgroups: "x" is not a whole number; allowed: {CGROUPS}',
        f"5: limits.sockets: 0 is out of range; allowed: {SOCKETS}",
    ]


SYNTAX_ERRORS = {
    "two colons": ("flush: {}\nlimits: a: b", "2", "mapping values are not allowed here"),
    "two documents": (
        "a: 1\n---\nb: 1",
        "2",
        "expected a single document in the stream, but found another document",
    ),
    "unknown alias": ("\nflush: *a", "2", "found undefined alias 'a'"),
    "escape out of range": (
        'a: 1\nb: "\\UFFFFFFFF"',
        "2",
        "a number in an escape or directive is out of range",
    ),
    "huge directive": (
        f"%YAML {'9' * 5000}.1\n---\n",
        "1",
        "a number in an escape or directive is out of range",
    ),
    "deep nesting": ("a:\n " + "[" * 5000, "2", "nested too deeply"),
}


@pytest.mark.parametrize(("text", "line", "what"), SYNTAX_ERRORS.values(), ids=SYNTAX_ERRORS)
def test_syntax_error(scratch: Path, text: str, line: str, what: str) -> None:
    assert errors_of(scratch, text) == [f"{line}: YAML syntax: {what}; give one YAML document"]


def test_control_character(scratch: Path) -> None:
    assert errors_of(scratch, "a: 1\nb: \x07") == [
        "2: YAML syntax: character U+0007 is not allowed; remove it or write it as an escape"
    ]


def test_alias_bomb(scratch: Path) -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
    errors = errors_of(scratch, f"{bomb}attach: {{meters: *a59}}")
    assert len(errors) == 62
    assert f"59: attach.meters[1]: a list is not a string; allowed: {GLOBS}" in errors


@pytest.mark.parametrize("glob", ["/..", "/../a", "/a/..", "//", "/a//b", "/a/", "/.", "/./a"])
def test_meter_with_a_part_no_cgroup_has(scratch: Path, glob: str) -> None:
    assert errors_of(scratch, f"attach: {{meters: [{glob}]}}") == [
        f'1: attach.meters[0]: "{glob}" has an empty part, "." or ".." between slashes; allowed: {GLOBS}'
    ]


def test_dots_within_a_name_are_no_parent(scratch: Path) -> None:
    assert load_text(scratch, "attach: {meters: [/a..b/...]}").attach.meters == ("/a..b/...",)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "no")
    assert (
        str(caught.value)
        == f"{tmp_path}/no: cannot be read: No such file or directory; give a readable YAML file"
    )


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert str(caught.value) == f"{tmp_path}: cannot be read: Is a directory; give a readable YAML file"


def test_endless_file() -> None:
    with pytest.raises(ConfigError) as caught:
        load(Path("/dev/zero"))
    assert str(caught.value) == "/dev/zero: is larger than 1 MiB; give a smaller YAML file"


def test_not_utf8(scratch: Path) -> None:
    scratch.write_bytes(b"flush: {}\n# \xe9\n")
    with pytest.raises(ConfigError) as caught:
        load(scratch)
    assert str(caught.value) == f"{scratch}:2: encoding: not UTF-8; save the file as UTF-8"


def test_odd_file_name_stays_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\n\xff")))
    assert str(caught.value).startswith(f"{tmp_path}/a\\n\\udcff: cannot be read:")


YAML_WORDS = [
    *("attach", "flush", "limits", "meters", "interval", "cgroups", "sockets", "a", "/a", "/.."),
    *("0", "1", "10s", "null", "true", "auto", "---", "...", "<<", "&a", "*a", "\\U", "\\x", "%YAML"),
    *("!!int", "!!bool", "!!null", "!!map", *":,[]{}-?&*!|>%@`'\"#\\~="),
]
YAML_SPACES = [" ", "\n", "\n  ", "\t", "\r", "\x85", "\u2028", "\ufeff", ": ", "\n- "]


def is_config_or_error_lines(path: Path, content: bytes) -> bool:
    path.write_bytes(content)
    try:
        return isinstance(load(path), Config)
    except ConfigError as error:
        return all(line.startswith(f"{path}:") and "; " in line for line in str(error).splitlines())


@given(st.text() | st.lists(st.sampled_from([*YAML_WORDS, *YAML_SPACES])).map("".join))
def test_any_text_gives_config_or_error_lines(scratch: Path, text: str) -> None:
    assert is_config_or_error_lines(scratch, text.encode())


@given(st.binary())
def test_any_bytes_give_config_or_error_lines(scratch: Path, content: bytes) -> None:
    assert is_config_or_error_lines(scratch, content)
