import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.cpuset import HIGHEST_CPU, CpuListError, format_cpu_list, parse_cpu_list


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("", ()),
        (" \n", ()),
        ("0", (0,)),
        ("0-3", (0, 1, 2, 3)),
        ("3-3", (3,)),
        ("0,128,1-3,129-131\n", (0, 128, 1, 2, 3, 129, 130, 131)),
        ("64,192,65-66", (64, 192, 65, 66)),
        (" 5 , 2 ", (5, 2)),
        (str(HIGHEST_CPU), (HIGHEST_CPU,)),
    ],
)
def test_a_list_keeps_its_order(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == cpus


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a", "'a' is not a CPU id"),
        ("1,", "'' is not a CPU id"),
        (",", "'' is not a CPU id"),
        ("-1", "'-1' is not a CPU id"),
        ("1--2", "is not a CPU id"),
        ("1-2-3", "is not a CPU id"),
        ("0-7:2/4", "is not a CPU id"),
        ("1 2", "is not a CPU id"),
        ("٣", "is not a CPU id"),
        ("3-1", "the range 3-1 falls"),
        ("1,1", "CPU 1 is named twice"),
        ("0-3,2-5", "CPU 2 is named twice"),
        ("8192", "CPU 8192 is above"),
        ("0-999999999", "CPU 999999999 is above"),
        ("9" * 5000, "is not a CPU id"),
    ],
)
def test_anything_else_is_refused(text: str, why: str) -> None:
    with pytest.raises(CpuListError, match=why):
        parse_cpu_list(text)


@pytest.mark.parametrize(
    ("cpus", "text"),
    [
        ((), ""),
        ((7,), "7"),
        ((0, 1), "0-1"),
        ((1, 0), "1,0"),
        ((0, 128, 1, 2, 3, 129, 130, 131, 4), "0,128,1-3,129-131,4"),
    ],
)
def test_runs_are_written_as_ranges(cpus: tuple[int, ...], text: str) -> None:
    assert format_cpu_list(cpus) == text


@given(st.lists(st.integers(0, HIGHEST_CPU), unique=True))
def test_every_list_survives_text(cpus: list[int]) -> None:
    assert parse_cpu_list(format_cpu_list(cpus)) == tuple(cpus)
