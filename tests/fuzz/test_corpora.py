"""The corpora are small, and decode as they should, whether or not there is a fuzzer."""

from __future__ import annotations

import pytest

from tests.fuzz.target import CORPUS, FOLDER, TARGETS, limited, load

LARGEST_CORPORA = 500_000
"""Bytes, all files together."""
MOST_FILES = 80


def test_each_target_has_a_corpus_and_they_stay_small() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == set(TARGETS)
    assert {file.stem for file in (FOLDER / "targets").glob("*.py") if "\nTARGET = " in file.read_text()} == set(
        TARGETS
    )
    files = [file for file in CORPUS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < LARGEST_CORPORA
    for name in TARGETS:
        assert 5 <= len(list((CORPUS / name).iterdir())) <= MOST_FILES


@pytest.mark.parametrize("name", TARGETS)
def test_what_once_led_somewhere_new_decodes_as_it_should(name: str) -> None:
    take = limited(load(name))
    for file in sorted((CORPUS / name).iterdir()):
        take(file.read_bytes())
