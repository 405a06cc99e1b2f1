"""A source in the live tree."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from cord_trio.observe import Node
from cord_trio.replicas import Replica, Replicas

if TYPE_CHECKING:
    from cord_trio.replicas import Kept


def node_of(link: Kept) -> Node:
    """The source as it is now, for the live tree."""
    now = trio.current_time()
    facts: dict[str, object] = {
        "pid": link.pid,
        "reason": link.reason,
        "next_try_in": None if link.next_try is None else round(max(0.0, link.next_try - now), 1),
        "waiting": len(link.waiting) or None,
        "notes": len(link.notes) or None,
    }
    if isinstance(link, Replicas):
        return Node("source", link.name, link.state, facts, tuple(node_of(each) for each in link.links))
    if isinstance(link, Replica):
        facts["in_flight"] = link.load.in_flight
        facts["answered"] = link.load.answers
        facts["latency_ms"] = round(1000 * link.load.latency(now), 1)
        facts["left_out_for"] = round(link.load.until - now, 1) if link.load.until > now else None
    sessions = []
    for key, client in link.open():
        pending = client.session.peer.open.values()
        nearest = min((call.deadline for call in pending), default=math.inf)
        about = {
            "in_flight": len(pending),
            "deadline_in": None if nearest == math.inf else round(nearest - now, 3),
            "log_lines": client.session.log_lines,
        }
        sessions.append(Node("session", key, client.greeting.revision, about))
    kind = "replica" if isinstance(link, Replica) else "source"
    return Node(kind, link.name, link.state, facts, tuple(sessions))
