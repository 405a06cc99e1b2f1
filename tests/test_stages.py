from __future__ import annotations

from cord_trio.stages import Stages


def test_whoever_is_told_of_a_stage_finds_it_reached() -> None:
    found: list[tuple[str, str]] = []
    stages = Stages(lambda stage: found.append((stage, stages.stage)))
    stages.go_to("closed")
    assert found == [(stage, stage) for stage in ("draining", "closing", "closed")]


def test_no_stage_is_left_out_or_comes_back() -> None:
    seen: list[str] = []
    stages = Stages(seen.append)
    assert stages.stage == "running"
    assert stages.go_to("closing") is True
    assert seen == ["draining", "closing"]
    assert stages.go_to("closing") is False
    assert stages.go_to("draining") is False
    assert (stages.stage, seen) == ("closing", ["draining", "closing"])
    assert stages.go_to("closed") is True
    assert seen == ["draining", "closing", "closed"]
