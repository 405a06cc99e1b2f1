"""What a NATS server lets each node of a mesh do, as its configuration says it. Pure.

The broker proves who calls: a node's name is the last part of every subject that it may call, so nobody calls as
another; only a node writes its own record; and only a node listens where its replies go.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

ANSWERING: Final = "1h"
"""For how long a node may answer what it was asked: longer than any call goes on without being asked about again."""

BULK: Final = "*.*.in.*.*"
"""Where parts of large bodies go: below an inbox that only its owner and whom it asks know the name of."""


@attrs.frozen
class Member:
    """One node, as its server knows it.

    Attributes:
        name: the node's.
        key: its public nkey.
        calls: the nodes that it may call; empty for all.
        registrar: whether it may take away the records of nodes whose leases have ended.

    """

    name: str
    key: str
    calls: tuple[str, ...] = ()
    registrar: bool = True


def permissions_of(member: Member, mesh: str) -> dict[str, object]:
    """What `member` may do, in the words of a NATS server's configuration."""
    name, bucket = member.name, f"cord_{mesh}"
    stream, keys = f"KV_{bucket}", f"$KV.{bucket}"
    publish = [f"c1.{mesh}.call.{target}.*.{name}" for target in member.calls or ("*",)]
    if member.calls and name not in member.calls:
        publish.append(f"c1.{mesh}.call.{name}.*.{name}")  # whether the one before it is still there
    publish += [f"{keys}.up.{name}", f"{keys}.hb.{name}.*", f"{keys}.cat.>", f"{keys}.ag.*"]
    if member.registrar:
        publish += [f"{keys}.up.*", f"{keys}.hb.*.*"]
    publish += [
        f"$JS.API.STREAM.CREATE.{stream}",
        f"$JS.API.STREAM.INFO.{stream}",
        f"$JS.API.CONSUMER.CREATE.{stream}",
        f"$JS.API.CONSUMER.CREATE.{stream}.>",
        f"$JS.API.DIRECT.GET.{stream}.>",
        f"$JS.FC.{stream}.>",
        BULK,
    ]
    subscribe = [f"_INBOX_{name}.>", f"c1.{mesh}.call.{name}.*.*"]
    return {
        "publish": {"allow": publish},
        "subscribe": {"allow": subscribe},
        "allow_responses": {"max": -1, "expires": ANSWERING},
    }


def server_config(members: Sequence[Member], mesh: str, *, listen: str, store: str) -> str:
    """The configuration of a NATS server for the nodes of one mesh.

    Args:
        members: who may connect; nobody else does.
        mesh: its name.
        listen: where, as HOST:PORT.
        store: the folder that JetStream keeps its files in.

    """
    users = [f"    # {each.name}\n    {_user(each, mesh)}" for each in members]
    return "\n".join(
        [
            f"# The mesh {mesh!r}, by `cord_trio mesh permissions`. nats-server 2.11 or newer.",
            f"listen: {json.dumps(listen)}",
            "# For other machines add: tls { cert_file: …, key_file: … }",
            f"jetstream {{ store_dir: {json.dumps(store)} }}",
            "ping_interval: 10s  # half-open connections end within three of these",
            "ping_max: 2",
            "write_deadline: 10s",
            "authorization {",
            "  users: [",
            *users,
            "  ]",
            "}",
            "",
        ]
    )


def _user(member: Member, mesh: str) -> str:
    return json.dumps({"nkey": member.key, "permissions": permissions_of(member, mesh)})
