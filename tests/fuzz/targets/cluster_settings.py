"""The settings of globald."""

from __future__ import annotations

from globald.settings import TABLE, load_settings
from tests.fuzz.target import Target
from tests.fuzz.targets.settings_check import check, words


def take(data: bytes) -> None:
    """See ``settings_check``."""
    check(data, TABLE, load_settings)


TARGET = Target(take, words=words(TABLE), longest=2048)
