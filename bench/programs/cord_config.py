"""Our configuration for given sources."""

from __future__ import annotations

import json


def toml(sources, *, era="auto", slots=32) -> str:
    # A JSON string or list of strings is also one of TOML.
    lines = []
    for source in sources:
        lines.append(f"[sources.{source['name']}]")
        if "url" in source:
            lines.append(f"url = {json.dumps(source['url'])}")
        else:
            command, *args = source["command"]
            lines += [f"command = {json.dumps(command)}", f"args = {json.dumps(args)}"]
        lines += [f"era = {json.dumps(era)}", f"slots = {slots}"]
    return "\n".join(lines) + "\n"
