import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.level import HIGHEST, LOWEST, LevelError, format_level, parse_level


@pytest.mark.parametrize(
    ("value", "level", "text"),
    [
        ("1", 1000, "1.0"),
        (1, 1000, "1.0"),
        (1.0, 1000, "1.0"),
        ("1.5", 1500, "1.5"),
        (1.1, 1100, "1.1"),
        ("2.80", 2800, "2.8"),
        ("3.3000000", 3300, "3.3"),
        ("1.125", 1125, "1.125"),
        ("1.05", 1050, "1.05"),
        ("1.001", 1001, "1.001"),
        ("064", 64000, "64.0"),
    ],
)
def test_a_level_is_read_exactly_and_written_shortest(value: str | float, level: int, text: str) -> None:
    assert parse_level(value) == level
    assert format_level(level) == text


@pytest.mark.parametrize(
    "value",
    [
        "", " 1", "1 ", "1.", ".5", "+1", "-1", "1e3", "1,5", "0x1", "nan", "inf", "None", "1.0001", "0", "0.999",
        "64.001", "65", "\u0661", "1_0", "1" * 400, 0, -2, 0.5, 1e22, 1e-7, float("nan"), float("inf"), 1.0001, True,
    ],
)  # fmt: skip
def test_anything_else_is_refused(value: str | float) -> None:
    with pytest.raises(LevelError, match=r"from 1\.0 to 64\.0 with at most 3 decimals"):
        parse_level(value)


def test_a_refusal_quotes_no_more_than_is_readable() -> None:
    with pytest.raises(LevelError) as caught:
        parse_level("9" * 10_000)
    assert len(str(caught.value)) < 200


@given(st.integers(LOWEST, HIGHEST))
def test_every_level_survives_text_and_float(level: int) -> None:
    assert parse_level(format_level(level)) == level
    assert parse_level(level / 1000) == level
