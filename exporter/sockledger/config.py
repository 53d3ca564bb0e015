"""What a user may set, checked: the YAML file, key by key, and the flags of ``run``."""

import difflib
import grp
import os
import pwd
import re
import stat
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Network, ip_network
from pathlib import Path
from typing import Any, TypeVar

import yaml

from sockledger.errors import UserError, printable
from sockledger.kernel.networks import Network
from sockledger.workloads.networks import BUILT_IN, HOST, SUBNET
from sockledger.workloads.paths import LEAF, LEVELS
from sockledger.workloads.pod_watch import label_name

_MAX_BYTES = 1 << 20
_MAX_CGROUPS, _MAX_SOCKETS, _MAX_CONNECTIONS = 1_000_000, 10_000_000, 1_000_000
_MAX_LABEL_SETS = _MAX_WORKLOADS = 1_000_000
_MAX_COMMS = 1000
_MAX_TAGS = 64  # as in bpf/tags.h
_MAX_ID = (1 << 32) - 2  # of users and groups
_MAX_LEVELS = 64
_DURATION_UNITS = {"y": 31_536_000_000, "w": 604_800_000, "d": 86_400_000}
_DURATION_UNITS |= {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_DURATION = re.compile("".join(f"(?:([0-9]+){unit})?" for unit in _DURATION_UNITS))
_WHOLE_NUMBER = re.compile("-?(?:0|[1-9][0-9]*)")
_SHOWN_CHARACTERS = 60
_RULE_LABELS = ("namespace", "pod", "container", "unit")  # a workload's, without cgroup: that is the path
IN_CLUSTER = "in-cluster"
# k8s.io/apimachinery/pkg/util/validation, IsDNS1123Subdomain and IsQualifiedName
_SUBDOMAIN = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*"
_NODE = re.compile(_SUBDOMAIN)
_POD_KEY = re.compile(rf"(?:(?=[^/]{{1,253}}/){_SUBDOMAIN}/)?[A-Za-z0-9]([A-Za-z0-9_.-]{{0,61}}[A-Za-z0-9])?")
_MOST_CLASSES = 512  # the kernel has room for the names of twice as many (class_names in bpf/peers.h)
_CLASS = re.compile("[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
_COLLECTIONS = {"map": yaml.MappingNode, "seq": yaml.SequenceNode}


class ConfigError(UserError):
    """The configuration is refused. Each line: ``FILE:LINE: KEY: what is wrong; what is allowed``."""


@dataclass(frozen=True, slots=True)
class Attach:
    """Where programs are attached beside the root."""

    meters: tuple[str, ...] = ()  # globs of cgroup paths


@dataclass(frozen=True, slots=True)
class Flush:
    """How the kernel's counters are gathered."""

    interval: float = 10.0  # seconds


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be kept."""

    cgroups: int = 8192
    sockets: int = 65536
    connections: int = 262144
    label_sets: int = 4096
    workloads: int = 2000
    comms: int = 20
    tags: int = 16


AUTO, ALWAYS, NEVER = "auto", "always", "never"


@dataclass(frozen=True, slots=True)
class Labels:
    """Which labels workloads have: `NEVER` leaves one empty, and what it told apart is summed."""

    namespace: str = AUTO
    pod: str = AUTO
    container: str = AUTO
    unit: str = AUTO
    cgroup: str = AUTO  # where no other names it
    protocol: str = AUTO
    family: str = AUTO


@dataclass(frozen=True, slots=True)
class Persist:
    """For how long what is kept, in seconds."""

    lease: float = 86400.0  # counting, without a daemon
    gone: float = 600.0  # series of cgroups that are gone


@dataclass(frozen=True, slots=True)
class Tags:
    """Who may tag sockets, by their ids; None: who the daemon runs as."""

    owner: int | None = None
    group: int | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """What a cgroup is called whose path has a match."""

    match: re.Pattern[str]  # its groups are called as labels


@dataclass(frozen=True, slots=True)
class Engine:
    """What knows containers by their names."""

    socket: Path | None = None  # None: it is not asked


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """The API server, and what of its pods' metadata is shown."""

    kubeconfig: Path | None  # None: as the service account of our own pod
    node: str = ""  # which pods it is asked for; empty: of the node that we run on
    pod_labels: tuple[str, ...] = ()
    pod_annotations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Workloads:
    """What cgroups are called."""

    rules: tuple[Rule, ...] = ()
    docker: Engine = field(default_factory=Engine)
    podman: Engine = field(default_factory=Engine)
    kubernetes: Kubernetes | None = None  # None: it is not asked


@dataclass(frozen=True, slots=True)
class Config:
    """The configuration file."""

    attach: Attach = field(default_factory=Attach)
    flush: Flush = field(default_factory=Flush)
    limits: Limits = field(default_factory=Limits)
    persist: Persist = field(default_factory=Persist)
    workloads: Workloads = field(default_factory=Workloads)
    labels: Labels = field(default_factory=Labels)
    aggregate: str | int = LEAF  # of `LEVELS`, or a number of levels of the path
    include: tuple[str, ...] = ()  # globs of cgroup paths
    exclude: tuple[str, ...] = ()
    networks: Mapping[str, tuple[Network, ...]] = field(default_factory=dict)  # by the class of peers
    networks_file: Path | None = None  # with the same
    service_networks: tuple[Network, ...] = ()
    node_networks: tuple[str, ...] = ()  # HOST, SUBNET
    tags: Tags = field(default_factory=Tags)

    @property
    def has_networks(self) -> bool:
        """Whether peers have classes."""
        return bool(self.networks or self.networks_file or self.service_networks or self.node_networks)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The flags of ``sockledger run``."""

    config_file: Path | None
    pin: bool
    listen_addresses: tuple[tuple[str, int], ...]
    telemetry_path: str
    systemd_socket: bool
    max_requests: int  # 0: no limit
    exporter_metrics: bool
    collectors: frozenset[str]  # the enabled ones
    tcp_histograms: bool
    log_level: str
    log_format: str
    cgroupfs: Path | None  # None: found in mountinfo
    bpffs: Path


def load(path: Path | None) -> Config:
    """Return the configuration in the file *path*, or the defaults without one; raise `ConfigError`.

    What `networks_file` names must be readable, too.
    """
    if path is None:
        return Config()
    config, problems = _load(path, _CONFIG, Config())
    if not problems and config.networks and config.networks_file:
        problems.append((1, "networks_file: there are networks, too; allowed: one of both"))
    if not problems and config.persist.lease < 2 * config.flush.interval:
        problems.append((1, "persist.lease: is shorter than two of flush.interval; allowed: longer"))
    _refuse(path, problems)
    if config.networks_file:
        load_networks(config.networks_file)
    return config


def load_networks(path: Path) -> Mapping[str, tuple[Network, ...]]:
    """Return the networks in the file *path*, by class; raise `ConfigError`."""
    none: Mapping[str, tuple[Network, ...]] = {}
    networks, problems = _load(path, _NETWORKS, none)
    if networks is none:  # as while somebody writes it
        problems = problems or [(1, "top level: nothing is there; allowed: {} for no networks")]
    _refuse(path, problems)
    return networks


_T = TypeVar("_T")


def _load(path: Path, schema: "_Schema", empty: _T) -> tuple[_T, list[tuple[int, str]]]:
    """Return what is in a file, *empty* if that is nothing, and what is wrong with it, by line."""
    file = printable(str(path))
    root = _compose(_read(path, file), file)
    problems: list[tuple[int, str]] = []
    return empty if root is None else _walk(schema, root, "", problems), problems


def _refuse(path: Path, problems: list[tuple[int, str]]) -> None:
    if problems:
        file = printable(str(path))
        problems.sort(key=lambda problem: problem[0])
        raise ConfigError("\n".join(f"{file}:{line}: {problem}" for line, problem in problems))


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; a pipe, too, without waiting for its other end."""
    return os.open(path, flags | os.O_NONBLOCK)


def _read(path: Path, file: str) -> str:
    """Return the text of *path*, called *file* in errors."""
    try:
        with open(path, "rb", opener=_open_at_once) as stream:
            if stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode):
                raise ConfigError(f"{file}: is a pipe; give a YAML file, which can be read again")
            content = stream.read(_MAX_BYTES + 1) or b""  # of a terminal there may be nothing yet
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}; give a readable YAML file") from None
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{file}: is larger than 1 MiB; give a smaller YAML file")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}:{line}: encoding: not UTF-8; save the file as UTF-8") from None


def _compose(text: str, file: str) -> yaml.Node | None:
    """Parse YAML into nodes, which know their lines; None if there is no document."""
    try:
        loader = yaml.SafeLoader(text)
    except yaml.reader.ReaderError as error:
        line, what = (
            text.count("\n", 0, error.position) + 1,
            f"character U+{error.character:04X} is not allowed",
        )
        raise ConfigError(f"{file}:{line}: YAML syntax: {what}; remove it or write it as an escape") from None
    try:
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark or loader.get_mark()
        what = ", ".join(part for part in (error.context, error.problem) if part)
    except RecursionError:
        mark, what = loader.get_mark(), "nested too deeply"
    except (ValueError, OverflowError):
        # PyYAML converts the numbers in escapes and directives unchecked.
        mark, what = loader.get_mark(), "a number in an escape or directive is out of range"
    raise ConfigError(f"{file}:{mark.line + 1}: YAML syntax: {printable(what)}; give one YAML document")


@dataclass(frozen=True, slots=True)
class _Value:
    """A scalar. *parse* raises ValueError with what is wrong, to follow the value."""

    parse: Callable[[yaml.Node], object]
    allowed: str


@dataclass(frozen=True, slots=True)
class _Names:
    """A mapping with names that users choose; *clash* as in `_List`, with the values in place of items."""

    allowed: str
    name: Callable[[str], str]  # what is wrong with a name; empty: nothing
    value: "_List"
    clash: Callable[[Mapping[str, Any]], str] = lambda _: ""


@dataclass(frozen=True, slots=True)
class _List:
    """A list. *clash* finds what is wrong with items together, to follow the key; empty: nothing."""

    item: "_Value | _Section"
    clash: Callable[[tuple[Any, ...]], str] = lambda _: ""


@dataclass(frozen=True, slots=True)
class _Section:
    """A mapping of which *make* makes an object; without *required* keys there is none."""

    make: Callable[..., object]
    keys: Mapping[str, "_Schema"]
    required: tuple[str, ...] = ()

    @property
    def allowed(self) -> str:
        return f"mappings with the keys {', '.join(self.keys)}"


_Schema = _Value | _List | _Section | _Names


def _walk(schema: _Schema, node: yaml.Node, key: str, problems: list[tuple[int, str]]) -> Any:
    """Return what *node*, found at *key*, stands for; add what is wrong, with its line, to *problems*."""
    # A section or list with all its entries commented out is null.
    empty = _has_tag(node, "null")
    match schema:
        case _Section() if empty or _has_tag(node, "map"):
            values = _walk_keys(schema.keys, [] if empty else node.value, key, problems)
            if values.keys() >= set(schema.required):
                return schema.make(**values)
            problem = f"lacks a key; allowed: with {', '.join(schema.required)}"
        case _List() if empty or _has_tag(node, "seq"):
            nodes = enumerate([] if empty else node.value)
            items = tuple(_walk(schema.item, item, f"{key}[{index}]", problems) for index, item in nodes)
            if not (problem := schema.clash(items)):
                return items
        case _Names() if empty or _has_tag(node, "map"):
            names = _walk_names(schema, [] if empty else node.value, key, problems)
            if not (problem := schema.clash(names)):
                return names
        case _Value():
            try:
                return schema.parse(node)
            except ValueError as error:
                problem = f"{_shown(node)} {error}; allowed: {schema.allowed}"
        case _List():
            problem = f"{_shown(node)} is not a list; allowed: a list of {schema.item.allowed}"
        case _Names():
            problem = f"{_shown(node)} is not a mapping; allowed: {schema.allowed}"
        case _Section():
            problem = f"{_shown(node)} is not a mapping; allowed: the keys {', '.join(schema.keys)}"
    problems.append((_line(node), f"{key or 'top level'}: {problem}"))
    return None


def _walk_names(
    schema: _Names, pairs: list[tuple[yaml.Node, yaml.Node]], section: str, problems: list[tuple[int, str]]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name_node, node in pairs:
        name = name_node.value if _has_tag(name_node, "str") else _shown(name_node)
        key = f"{section}.{_shortened(name)}" if section else _shortened(name)
        wrong = "duplicate key" if name in values else schema.name(name)
        if wrong:
            problems.append((_line(name_node), f"{key}: {wrong}; allowed: {schema.allowed}"))
        else:
            values[name] = _walk(schema.value, node, key, problems)
    return values


def _walk_keys(
    schemas: Mapping[str, _Schema],
    pairs: list[tuple[yaml.Node, yaml.Node]],
    section: str,
    problems: list[tuple[int, str]],
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    first_lines: dict[str, int] = {}
    for name_node, node in pairs:
        name = name_node.value if _has_tag(name_node, "str") else _shown(name_node)
        key = f"{section}.{_shortened(name)}" if section else _shortened(name)
        line = _line(name_node)
        if name not in schemas:
            close = difflib.get_close_matches(name, schemas, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            problems.append((line, f"{key}: unknown key{hint}; allowed: {', '.join(schemas)}"))
        elif name in first_lines:
            first = first_lines[name]
            problems.append((line, f"{key}: duplicate key, first on line {first}; allowed: each key once"))
        else:
            first_lines[name] = line
            values[name] = _walk(schemas[name], node, key, problems)
    return values


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _has_tag(node: yaml.Node, kind: str) -> bool:
    node_type = _COLLECTIONS.get(kind, yaml.ScalarNode)  # anything may be tagged as anything
    return isinstance(node, node_type) and node.tag == f"tag:yaml.org,2002:{kind}"


def _shown(node: yaml.Node) -> str:
    """Return *node* as errors show it: strings quoted, so that "10" is not taken for 10."""
    if isinstance(node, yaml.CollectionNode):
        what = "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
        plain = any(_has_tag(node, kind) for kind in _COLLECTIONS)
        return what if plain else f"{what} with tag {_shortened(node.tag)}"
    if _has_tag(node, "null"):
        return "an empty value"
    text = _shortened(node.value)
    return f'"{text}"' if _has_tag(node, "str") else text


def _shortened(text: str) -> str:
    return printable(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}...")


def _absolute(node: yaml.Node) -> str:
    if not _has_tag(node, "str"):
        raise ValueError("is not a string")
    if not node.value.startswith("/"):
        raise ValueError('does not begin with "/"')
    return str(node.value)


def _glob(node: yaml.Node) -> str:
    glob = _absolute(node)
    if glob == "/":
        raise ValueError("is the root, and globs are of what is below it")
    if not glob.isprintable():
        raise ValueError('has characters that cannot be printed, for which "?" may stand')
    if not {"", ".", ".."}.isdisjoint(glob[1:].split("/")):
        raise ValueError('has an empty part, "." or ".." between slashes')
    return glob


def _path(node: yaml.Node) -> Path:
    path = _absolute(node)
    if "\0" in path:
        raise ValueError("has a NUL")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise ValueError("has a character that no path can have") from None
    return Path(path)


def _rule(node: yaml.Node) -> re.Pattern[str]:
    if not _has_tag(node, "str"):
        raise ValueError("is not a string")
    try:
        with warnings.catch_warnings(action="error"):  # as of [[:alnum:]], which Python does not know
            pattern = re.compile(node.value)
    except (re.error, RecursionError, OverflowError, FutureWarning) as error:
        raise ValueError(f"is no regular expression ({printable(str(error))})") from None
    if not pattern.groupindex:
        raise ValueError("has no group that is called as a label")
    if unknown := pattern.groupindex.keys() - set(_RULE_LABELS):
        raise ValueError(f"has a group {printable(min(unknown))}, which is no label")
    return pattern


def _node(node: yaml.Node) -> str:
    if not _has_tag(node, "str") or not _NODE.fullmatch(node.value):
        raise ValueError("is no name that a node may have")
    return str(node.value)


def _kubeconfig(node: yaml.Node) -> Path | None:
    return None if _has_tag(node, "str") and node.value == IN_CLUSTER else _path(node)


def _pod_keys(kind: str) -> _List:
    def parse(node: yaml.Node) -> str:
        if not _has_tag(node, "str") or not _POD_KEY.fullmatch(node.value):
            raise ValueError("is no key that a pod may have")
        return str(node.value)

    def clash(keys: tuple[str | None, ...]) -> str:
        keys_of: dict[str, str] = {}
        for key in filter(None, keys):
            name = label_name(kind, key)
            if name in keys_of:
                return f"{keys_of[name]} and {key} are both called {name}; allowed: one of them"
            keys_of[name] = key
        return ""

    return _List(_Value(parse, f"keys of pods' {kind}s, such as app.kubernetes.io/name"), clash)


def _seconds(node: yaml.Node) -> float:
    match = _DURATION.fullmatch(node.value) if _has_tag(node, "str") else None
    if match is None or not node.value:
        raise ValueError("is not a duration")
    numbers = zip(match.groups(default="0"), _DURATION_UNITS.values(), strict=True)
    return sum(float(number) * unit for number, unit in numbers) / 1000


def _duration(least: str, most: str, example: str) -> _Value:
    def bound(text: str) -> float:
        return _seconds(yaml.ScalarNode("tag:yaml.org,2002:str", text))

    def parse(node: yaml.Node) -> float:
        seconds = _seconds(node)
        if not bound(least) <= seconds <= bound(most):
            raise ValueError("is out of range")
        return seconds

    return _Value(parse, f"{least} to {most}, written as {example}")


def _globs() -> _List:
    return _List(_Value(_glob, "absolute globs of cgroup paths, such as /system.slice/*.service"))


def _choice(*names: str) -> _Value:
    def parse(node: yaml.Node) -> str:
        if not _has_tag(node, "str") or node.value not in names:
            raise ValueError("is none of them")
        return str(node.value)

    return _Value(parse, ", ".join(names))


def _level() -> _Value:
    names, number = _choice(*LEVELS), _limit(_MAX_LEVELS)

    def parse(node: yaml.Node) -> object:
        return number.parse(node) if _has_tag(node, "int") else names.parse(node)

    return _Value(parse, f"{names.allowed}, or {number.allowed}")


def _limit(most: int) -> _Value:
    def parse(node: yaml.Node) -> int:
        # YAML 1.1 also reads 010, 1_0 and 1:40 as integers, and not as most would.
        if not _has_tag(node, "int") or not _WHOLE_NUMBER.fullmatch(node.value):
            raise ValueError("is not a whole number")
        # int() refuses thousands of digits, float() does not.
        if not 1 <= float(node.value) <= most:
            raise ValueError("is out of range")
        return int(node.value)

    return _Value(parse, f"a whole number from 1 to {most}")


def _account(kind: str, id_of: Callable[[str], int]) -> _Value:
    def parse(node: yaml.Node) -> int:
        if (
            _has_tag(node, "int")
            and _WHOLE_NUMBER.fullmatch(node.value)
            and len(node.value) <= len(str(_MAX_ID))
        ):
            number = int(node.value)
            if 0 <= number <= _MAX_ID:
                return number
        try:
            return id_of(node.value if _has_tag(node, "str") else "")
        except (KeyError, ValueError):  # a NUL
            raise ValueError(f"is no {kind} of this machine") from None

    return _Value(parse, f"a {kind}'s name, or a number from 0 to {_MAX_ID}")


def _network(node: yaml.Node) -> Network:
    if not _has_tag(node, "str"):
        raise ValueError("is not a string")
    try:
        network = ip_network(node.value)
    except ValueError as error:
        raise ValueError(f"is no network ({printable(str(error))})") from None
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped:
        raise ValueError("is for IPv4, whose packets have IPv4's addresses")
    if "%" in node.value:
        raise ValueError("has a scope, which packets do not tell")
    return network


def _class_name(name: str) -> str:
    if name in BUILT_IN:
        return "is a class that is there already"
    return "" if _CLASS.fullmatch(name) else "is no name for a class"


def _shared(classes: Mapping[str, tuple[Network | None, ...] | None]) -> str:
    """Return what is wrong with networks of several classes."""
    if len(classes) > _MOST_CLASSES:
        return f"there are {len(classes)} classes; allowed: up to {_MOST_CLASSES}"
    found: dict[Network, str] = {}
    for name, networks in classes.items():
        for network in networks or ():
            if network and found.setdefault(network, name) != name:
                return f"{network} is in {found[network]} and in {name}; allowed: each network in one class"
    return ""


_CIDRS = _List(_Value(_network, "networks, such as 10.0.0.0/8 or 2001:db8::/32"))
_NETWORKS = _Names(
    "names of letters, digits, _, . and -, up to 63, with lists of networks", _class_name, _CIDRS, _shared
)
_CONFIG = _Section(
    Config,
    {
        "attach": _Section(
            Attach,
            {
                "meters": _globs(),
            },
        ),
        "flush": _Section(Flush, {"interval": _duration("100ms", "1h", "500ms, 10s, 1m or 1m30s")}),
        "limits": _Section(
            Limits,
            {
                "cgroups": _limit(_MAX_CGROUPS),
                "sockets": _limit(_MAX_SOCKETS),
                "connections": _limit(_MAX_CONNECTIONS),
                "label_sets": _limit(_MAX_LABEL_SETS),
                "workloads": _limit(_MAX_WORKLOADS),
                "comms": _limit(_MAX_COMMS),
                "tags": _limit(_MAX_TAGS),
            },
        ),
        "persist": _Section(
            Persist,
            {
                "lease": _duration("1m", "1y", "90m, 24h or 7d"),
                "gone": _duration("1s", "1d", "30s, 10m or 1h"),
            },
        ),
        "workloads": _Section(
            Workloads,
            {
                "rules": _List(
                    _Section(
                        Rule,
                        {
                            "match": _Value(
                                _rule,
                                f"a regular expression with groups called {', '.join(_RULE_LABELS)}, such as "
                                "^/jobs/(?P<container>[0-9]+)",
                            )
                        },
                        required=("match",),
                    )
                ),
                **dict.fromkeys(
                    ("docker", "podman"),
                    _Section(Engine, {"socket": _Value(_path, "an absolute path, such as /run/docker.sock")}),
                ),
                "kubernetes": _Section(
                    Kubernetes,
                    {
                        "kubeconfig": _Value(_kubeconfig, f"{IN_CLUSTER}, or an absolute path"),
                        "node": _Value(_node, "the name of a node, such as worker-1.example.org"),
                        "pod_labels": _pod_keys("label"),
                        "pod_annotations": _pod_keys("annotation"),
                    },
                    required=("kubeconfig",),
                ),
            },
        ),
        "labels": _Section(
            Labels,
            {
                **dict.fromkeys(
                    ("namespace", "pod", "container", "unit", "protocol", "family"), _choice(AUTO, NEVER)
                ),
                "cgroup": _choice(AUTO, ALWAYS, NEVER),
            },
        ),
        "aggregate": _level(),
        "include": _globs(),
        "exclude": _globs(),
        "networks": _NETWORKS,
        "networks_file": _Value(_path, "an absolute path, such as /etc/sockledger/networks.yml"),
        "service_networks": _CIDRS,
        "node_networks": _List(_choice(HOST, SUBNET)),
        "tags": _Section(
            Tags,
            {
                "owner": _account("user", lambda name: pwd.getpwnam(name).pw_uid),
                "group": _account("group", lambda name: grp.getgrnam(name).gr_gid),
            },
        ),
    },
)
