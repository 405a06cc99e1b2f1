"""Seeded faults stand where they say: a row whose code has changed seeds nothing, and nobody would notice."""

from __future__ import annotations

from pathlib import Path

import cord_trio
from properties.mutants import FAULTS

SOURCE = Path(cord_trio.__file__).parent


def test_each_seeded_fault_is_about_code_that_is_there_once() -> None:
    texts = {file: (SOURCE / file).read_text("utf-8") for file in {fault.file for fault in FAULTS}}
    assert [str(fault) for fault in FAULTS if texts[fault.file].count(fault.old) != 1] == []


def test_each_seeded_fault_changes_something_and_stands_there_once() -> None:
    assert [str(fault) for fault in FAULTS if fault.old == fault.new] == []
    assert len(set(FAULTS)) == len(FAULTS)
