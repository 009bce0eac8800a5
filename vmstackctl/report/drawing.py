"""A report as the files that it consists of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from vmstackctl.report.page import page
from vmstackctl.report.pictures import as_png, pictures
from vmstackctl.report.series import Series
from vmstackctl.report.target import Target


class Drawn(msgspec.Struct, frozen=True):
    """files: what is to be in each. left_out: names of pictures that cannot be drawn, with the reason."""

    files: Mapping[Path, bytes]
    left_out: dict[str, str]


def draw(name: str, series: Series, target: Target, notes: Sequence[str]) -> Drawn:
    """Write nothing. name: of the trace; notes: about it, for people; both in printable signs."""
    found = pictures(series)
    if target.is_folder:
        files = {target.path / f"{picture.name}.png": as_png(picture) for picture in found if not picture.missing}
    else:
        files = {target.path: page(name, series, found, notes).encode()}
    return Drawn(files=files, left_out={picture.name: picture.missing for picture in found if picture.missing})
