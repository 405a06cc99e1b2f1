"""Reaching a mesh's broker, and what its nodes know of each other there, by the settings of one of them."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cord_trio.errors import ConfigError, Problem
from cord_trio.mesh_errors import NotPermitted, StoreFailed
from cord_trio.nats.client import open_nats
from cord_trio.nats.dialing import parse_server
from cord_trio.nats.keys import Credentials, load_credentials
from cord_trio.nats.kv import Bucket, BucketOptions, open_bucket

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from contextlib import AbstractAsyncContextManager

    from cord_trio.config import MeshConfig
    from cord_trio.counters import Counters
    from cord_trio.nats.client import Nats

ALONE: Final = 10074
"""What a server that is in no cluster, or in a smaller one, says of replicas.

Source: nats-server, server/errors.json.
"""


@asynccontextmanager
async def open_store(
    settings: MeshConfig, *, make: bool = True, counters: Counters | None = None
) -> AsyncGenerator[tuple[Nats, Bucket]]:
    """A connection to the mesh's broker, and what the nodes know of each other there. Raises as `in_mesh` says.

    Where there is no such mesh it is made; with `make` false, that is `StoreFailed`.
    """
    async with connect(settings, "control", counters) as nats:
        name, options = f"cord_{settings.name}", BucketOptions(replicas=settings.replicas)
        try:
            if not make:
                await Bucket(nats, name, options).api(f"STREAM.INFO.KV_{name}")
            bucket = await open_bucket(nats, name, options)
        except NotPermitted as exc:
            whose = settings.credentials or "who signs in so"
            doubt = f"may {whose} be node {settings.node!r} of mesh {settings.name!r}?"
            raise NotPermitted(exc.subject, f"{exc.reason}; {doubt}") from exc  # nothing was called yet
        except StoreFailed as exc:
            if exc.code != ALONE:
                raise
            doubt = f"mesh.replicas is {settings.replicas}: name 1, or have as many brokers in one cluster"
            raise StoreFailed(exc.code, f"{exc.reason}; {doubt}") from exc
        yield nats, bucket


def connect(settings: MeshConfig, use: str, counters: Counters | None) -> AbstractAsyncContextManager[Nats]:
    """A connection of a node to its broker, for `use`. Raises as `in_mesh` says."""
    for place, url in enumerate(settings.servers):
        try:
            parse_server(url)
        except ValueError as exc:
            what, remedy = f"is not the URL of a NATS server: {exc}", "write nats://HOST:PORT, tls://, ws:// or wss://"
            raise ConfigError([Problem("", f"mesh.servers[{place}]", what, remedy)]) from exc
    return open_nats(
        settings.servers, name=f"cord {settings.name}/{settings.node} {use}", credentials=_credentials(settings),
        verify=_trusted(settings), inbox=f"_INBOX_{settings.node}", counters=counters,
    )  # fmt: skip


def _credentials(settings: MeshConfig) -> Credentials | None:
    if settings.token:
        return Credentials(token=settings.token)
    if not settings.credentials:
        return None
    try:
        return load_credentials(Path(settings.credentials))
    except (OSError, ValueError) as exc:
        raise _unusable("credentials", settings.credentials, exc) from exc


def _trusted(settings: MeshConfig) -> bool | ssl.SSLContext:
    if not settings.ca:
        return True
    try:
        context = ssl.create_default_context()
        context.load_verify_locations(settings.ca)
    except (OSError, ssl.SSLError) as exc:
        raise _unusable("ca", settings.ca, exc) from exc
    return context


def _unusable(member: str, path: str, exc: Exception) -> ConfigError:
    why = (exc.strerror if isinstance(exc, OSError) else None) or str(exc).removeprefix(f"{path}: ")
    return ConfigError([Problem("", f"mesh.{member}", f"{path} cannot be used: {why}", "name another file")])
