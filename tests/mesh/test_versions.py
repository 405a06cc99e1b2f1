"""Nodes of today and of the first version understand each other, both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import pytest

from cord_trio.mesh import frames
from cord_trio.nats.wire import encode_headers
from tests.mesh import frames_v1

Json: TypeAlias = Any

SAID: Json = json.loads(Path(__file__).with_name("frames_v1.json").read_text("utf-8"))


def meaning(value: object) -> Json:
    return {name: part for name, part in msgspec.to_builtins(value).items() if name != "body"}


def agrees(ours: Json, frozen: Json) -> bool:
    """Whether what is known to both is the same."""
    return all(json.loads(json.dumps(ours[name])) == part for name, part in frozen.items())


@pytest.mark.parametrize("said", SAID["requests"], ids=lambda said: said["means"]["op"])
def test_a_request_of_the_first_version_is_understood_and_ours_by_it(said: Json) -> None:
    ours = frames.decode_request(said["head"].encode())
    assert agrees(meaning(ours), said["means"])
    theirs = frames_v1.decode_request(encode_headers(frames.encode_request(ours)))
    assert agrees(meaning(ours), json.loads(json.dumps(meaning(theirs))))


@pytest.mark.parametrize("said", SAID["frames"], ids=lambda said: said["means"]["kind"])
def test_a_frame_of_the_first_version_is_understood_and_ours_by_it(said: Json) -> None:
    ours = frames.decode_frame(said["head"].encode())
    assert agrees(meaning(ours), said["means"])
    theirs = frames_v1.decode_frame(encode_headers(frames.encode_frame(ours)))
    assert agrees(meaning(ours), json.loads(json.dumps(meaning(theirs))))


def test_every_kind_and_operation_of_the_first_version_is_among_them() -> None:
    assert {said["means"]["op"] for said in SAID["requests"]} == frames_v1.OPS <= frames.OPS
    assert {said["means"]["kind"] for said in SAID["frames"]} == frames_v1.KINDS <= frames.KINDS
