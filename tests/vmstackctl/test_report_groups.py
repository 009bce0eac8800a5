from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest

from core.trace import Sample
from tests.vmstackctl.recorded import MANY, USUAL, level, samples
from tests.vmstackctl.test_report_series import of, vm
from vmstackctl.report.groups import COLOURS, FREE, MOST_GROUPS, REST_COLOUR, UNKNOWN, groups, labels, peak, total

_EYES = {
    "usual": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    # Machado, Oliveira, Fernandes: A physiologically-based model for simulation of color vision deficiency (2009).
    "without green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "without red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}
_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
_WHITE = (0.95047, 1.0, 1.08883)


def _light(colour: str) -> list[float]:
    """Red, green and blue light of "#rrggbb", 0 to 1."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def _seen(colour: str, eyes: str) -> Sequence[float]:
    """In CIE L*a*b*, where equal distances look about equally different; 2.3 is just noticeable."""
    light = np.clip(np.array(_EYES[eyes]) @ _light(colour), 0, 1)
    x, y, z = (
        part ** (1 / 3) if part > 0.008856 else 7.787 * part + 16 / 116
        for part in (float(xyz) / white for xyz, white in zip(np.array(_XYZ) @ light, _WHITE, strict=True))
    )
    return (116 * y - 16, 500 * (x - y), 200 * (y - z))


@pytest.mark.parametrize("eyes", _EYES)
def test_colours_are_far_from_each_other_for_all_eyes(eyes: str) -> None:
    places = {colour: np.array(_seen(colour, eyes)) for colour in (*COLOURS, REST_COLOUR, FREE, UNKNOWN)}
    distances = {
        pair: float(np.linalg.norm(places[pair[0]] - places[pair[1]]))
        for pair in combinations(places, 2)
        if set(pair) != {FREE, UNKNOWN}
    }
    assert min(distances.values()) > 30, min(distances, key=lambda pair: distances[pair])


def test_the_measure_of_distance_sees_what_is_known_to_be_alike() -> None:
    def distance(one: str, other: str, eyes: str) -> float:
        return float(np.linalg.norm(np.subtract(_seen(one, eyes), _seen(other, eyes))))

    assert _seen("#ffffff", "usual") == pytest.approx((100, 0, 0), abs=0.1)
    assert distance("#c00000", "#6a6a00", "usual") > 60
    assert distance("#c00000", "#6a6a00", "without green") < 20


@pytest.mark.parametrize("colour", [*COLOURS, REST_COLOUR])
def test_lines_stand_out_from_white(colour: str) -> None:
    luminance = float(np.array(_XYZ[1]) @ _light(colour))
    assert 1.05 / (luminance + 0.05) >= 2.5


def test_few_levels_have_a_group_each_in_the_order_of_their_ratios() -> None:
    found = groups(of(samples(5, USUAL[::-1])))
    assert [group.label for group in found] == ["1:1", "2:1", "3:1"]
    assert [group.levels for group in found] == [{1000}, {2000}, {3000}]
    assert labels(found) == "1:1, 2:1 and 3:1"
    assert labels(found[:1]) == "1:1"


@pytest.mark.parametrize("count", [8, 9, 11])
def test_of_many_levels_those_with_the_fewest_cpus_are_one_group(count: int) -> None:
    recorded = of(samples(20, MANY[:count]))
    found = groups(recorded)
    assert len(found) == MOST_GROUPS
    assert len({group.colour for group in found}) == len({group.dashes for group in found}) == MOST_GROUPS
    assert sorted(value for group in found for value in group.levels) == sorted(MANY[:count])
    assert (found[-1].label == "other levels") == (count > MOST_GROUPS)
    if count > MOST_GROUPS:
        cpus = {summary.level: summary.cpu_samples for summary in recorded.summaries}
        shown = [cpus[value] for group in found[:-1] for value in group.levels]
        assert min(shown) >= max(cpus[value] for value in found[-1].levels)


def _two_levels(first: float | None, second: float | None) -> Sample:
    return Sample(
        time=0,
        cpus=8,
        memory_mib=0,
        cpu=None,
        memory=None,
        levels=(level(1000, [0, 1], first), level(2000, [2], second)),
        vms=(vm(vcpus=3), vm(vcpus=1, at=1000)),
    )


@pytest.mark.parametrize(
    ("busy", "summed", "highest"),
    [((1.5, 0.5), 2.0, 1.5), ((1.5, None), 1.5, 1.5), ((None, 0.5), 0.5, 0.5), ((None, None), None, None)],
)
def test_a_group_sums_and_compares_what_is_known(
    busy: tuple[float | None, float | None], summed: float | None, highest: float | None
) -> None:
    recorded = of([_two_levels(*busy)])
    both = groups(recorded)[0]
    both = type(both)(label="both", levels=frozenset({1000, 2000}), colour="", dashes="solid")
    assert total(recorded, both, lambda one: one.busy_cpus.value) == [summed]
    assert peak(recorded, both, lambda one: one.busy_cpus.value) == [highest]
    assert total(recorded, both, lambda one: one.vcpus) == [4]


def test_where_a_level_is_not_it_has_nothing_and_does_not_wait() -> None:
    later = Sample(time=60, cpus=8, memory_mib=0, cpu=None, memory=None, levels=(), vms=())
    recorded = of([_two_levels(1.0, 1.0), later])
    group = groups(recorded)[0]
    assert total(recorded, group, lambda one: one.cpus) == [2, 0]
    assert peak(recorded, group, lambda one: one.delay_p99) == [None, None]
