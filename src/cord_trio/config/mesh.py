"""How a fabric is a node of a mesh, and the table that says so."""

from __future__ import annotations

import re
import socket
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import attrs

from cord_trio.config.checks import Fault, check_numbers, glob_faults, pairs, raise_problems, texts
from cord_trio.config.expand import expand
from cord_trio.config.table import Table, move
from cord_trio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cord_trio.protocol.jsonrpc import Json

NAME: Final = re.compile(r"[a-z0-9_-]{1,48}")
"""Names of meshes, nodes and groups."""

LEAST_KEY: Final = 32
"""Characters of a key."""

_REMEDY: Final = "use 1 to 48 of a-z, 0-9, `_` and `-`"


def default_node() -> str:
    """The name of this machine, as far as a node can have it."""
    return re.sub(r"[^a-z0-9_-]", "-", socket.gethostname().lower().partition(".")[0])[:48] or "node"


@attrs.frozen(kw_only=True)
class MeshConfig:
    """How a fabric is a node of a mesh.

    Attributes:
        servers: URLs of NATS servers, such as `nats://host:4222`.
        name: of the mesh.
        node: ours in it, unlike any other.
        share: globs over the names of the sources that others may call.
        agents: globs over the names of the agents that others may ask, tell and hand to.
        groups: of sources that are the same wherever they run, by their names: those of one group that list the same
            stand for each other.
        region: where the node is: of those that stand for each other, its calls go to one there before any other,
            unless that has too much to do. "" where that makes no difference.
        labels: what the node is chosen by.
        credentials: a file with an nkey's seed, or of NATS credentials; "" for none.
        token: shared with the server; "" for none.
        ca: a file with certificates that are trusted beside the system's; "" for none.
        key: texts that all nodes of the mesh share, by which they know who calls: the first signs, any of them is
            taken. None where each is taken at its word.
        callers: globs over those of other nodes who may call what is here, each `WHO@NODE`.
        replicas: servers that keep what the nodes know of each other, where that is made anew.
        remote: sources of other nodes that are had here at most.

    """

    servers: tuple[str, ...] = attrs.field(converter=texts)
    name: str = "cord"
    node: str = attrs.field(factory=default_node)
    share: tuple[str, ...] = attrs.field(default=("*",), converter=texts)
    agents: tuple[str, ...] = attrs.field(default=("*",), converter=texts)
    groups: Mapping[str, str] = attrs.field(factory=dict, converter=pairs)
    region: str = ""
    labels: Mapping[str, str] = attrs.field(factory=dict, converter=pairs)
    credentials: str = ""
    token: str = attrs.field(default="", repr=False)
    ca: str = ""
    key: tuple[str, ...] = attrs.field(default=(), converter=texts, repr=False)
    callers: tuple[str, ...] = attrs.field(default=("*",), converter=texts)
    replicas: int = 1
    remote: int = 1000

    def __attrs_post_init__(self) -> None:
        raise_problems("mesh", self._faults())

    @property
    def told(self) -> Mapping[str, str]:
        """The labels by which others know the node."""
        return {**self.labels, "region": self.region} if self.region else self.labels

    def shares(self, source: str) -> bool:
        """Whether others may call the source."""
        return any(fnmatchcase(source, glob) for glob in self.share)

    def lends(self, agent: str) -> bool:
        """Whether others may ask the agent."""
        return any(fnmatchcase(agent, glob) for glob in self.agents)

    def _faults(self) -> Iterator[Fault]:
        if not self.servers:
            yield "servers", "names no server", 'write servers = ["nats://HOST:4222"]'
        for place, url in enumerate(self.servers):
            yield from _url_faults(f"servers[{place}]", url)
        for member, text in (("name", self.name), ("node", self.node)):
            if not NAME.fullmatch(text):
                yield member, f"{text[:100]!r} is no name", _REMEDY
        for source, group in self.groups.items():
            if not NAME.fullmatch(group):
                yield f"groups.{source}", f"{group[:100]!r} is no name", _REMEDY
        if self.region and self.labels.get("region", self.region) != self.region:
            yield "labels.region", "is not what region says", "keep one"
        if self.credentials and self.token:
            yield "token", "is given beside credentials", "keep one"
        for place, key in enumerate(self.key):
            if len(key) < LEAST_KEY:
                yield f"key[{place}]", f"has {len(key)} characters", f"give {LEAST_KEY} random ones, or more"
        yield from glob_faults("agents", self.agents)
        yield from glob_faults("callers", self.callers)
        for place, glob in enumerate(self.callers):
            if glob.strip() and not any(each in glob for each in "@*?["):
                yield (
                    f"callers[{place}]",
                    f"{glob[:100]!r} is nobody: each is WHO@NODE",
                    f'write "*@{glob[:48]}" for a node',
                )
        yield from check_numbers(self, {"replicas": 1, "remote": 0})


def _url_faults(path: str, url: str) -> Iterator[Fault]:
    expected = "write nats://HOST:PORT, tls://, ws:// or wss://"
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        port = parts.port
    except ValueError:
        yield path, "is not a URL", expected
        return
    if parts.scheme not in ("nats", "tls", "ws", "wss") or not parts.hostname or port == 0:
        yield path, "is not the URL of a NATS server", expected
    elif "@" in parts.netloc:
        yield path, "holds credentials", "put them into mesh.credentials or mesh.token"


def _keys(table: Table) -> tuple[str, ...]:
    """The keys, of which one may stand alone."""
    return (str(table.members["key"]),) if isinstance(table.members.get("key"), str) else table.texts("key") or ()


def read_mesh(top: Table, environ: Mapping[str, str]) -> MeshConfig | None:
    """The table `mesh`; None if there is none, or it cannot be used, which is reported."""
    table = top.table("mesh")
    if table is None:
        return None
    table.only(field.name for field in attrs.fields(MeshConfig))

    def expanded(name: str, *, home: bool = False) -> str | None:
        return filled(name, table.text(name) or "", home=home) or None

    def filled(name: str, text: str, *, home: bool = False) -> str | None:
        """What `text` is with its variables; None if one is not there, which is reported."""
        value, faults = expand(text, environ, home=home)
        for what, remedy in faults:
            table.report.add(table.at(name), what, remedy)
        return None if faults else value

    urls = table.texts("servers") or ()
    servers = [url for place, text in enumerate(urls) if (url := filled(f"servers[{place}]", text)) is not None]
    if len(servers) < len(urls):
        return None  # what else is wrong would be told of places that are not the user's
    given: dict[str, Json] = {
        "servers": servers,
        "name": table.text("name"),
        "node": expanded("node"),
        "share": table.texts("share"),
        "agents": table.texts("agents"),
        "groups": table.pairs("groups"),
        "region": table.text("region"),
        "labels": table.pairs("labels"),
        "credentials": expanded("credentials", home=True),
        "token": expanded("token"),
        "ca": expanded("ca", home=True),
        "key": [key for text in _keys(table) if (key := filled("key", text)) is not None],
        "callers": table.texts("callers"),
        "replicas": table.count("replicas"),
        "remote": table.count("remote"),
    }
    try:
        return MeshConfig(**{name: value for name, value in given.items() if value is not None})
    except ConfigError as exc:
        move(exc, "mesh", table)
        return None
