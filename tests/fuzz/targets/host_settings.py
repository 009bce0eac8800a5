"""The settings of vmstackd."""

from __future__ import annotations

from tests.fuzz.target import Target
from tests.fuzz.targets.settings_check import check, words
from vmstackd.settings import TABLE, load_settings


def take(data: bytes) -> None:
    """See ``settings_check``."""
    check(data, TABLE, load_settings)


TARGET = Target(take, words=words(TABLE), longest=2048)
