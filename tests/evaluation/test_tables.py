"""Tables fit the screen and lose no number."""

from __future__ import annotations

from evaluation.tables import estimate_text, table


def test_estimates_as_text() -> None:
    got = {"value": 0.9712, "n": 240, "low": 0.941, "high": 0.9861}
    assert estimate_text(got, percent=True) == "97.1 % [94.1, 98.6] n=240"
    assert estimate_text(got, percent=True, signed=True) == "+97.1 pp [+94.1, +98.6] n=240"
    assert estimate_text({**got, "low": -1.5}, percent=False) == "0.971 [-1.50, 0.986] n=240"
    assert estimate_text({**got, "low": None, "high": None}, percent=False) == "0.971 no interval n=240"
    assert estimate_text({"value": None, "n": 0, "low": None, "high": None}, percent=True) == "-"


def test_more_models_than_fit_go_below_and_nothing_is_lost() -> None:
    heads = [f"model{i}" for i in range(7)]
    rows = [(f"metric{j}" * 9, [f"{j}.{i} [-12345.0, +12345.0] n=24000" for i in range(7)]) for j in range(3)]
    text = table("metric", heads, rows)
    assert max(map(len, text.splitlines())) <= 100
    assert all(text.count(cell) == 1 for _, cells in rows for cell in cells)
    assert all(text.count(head) == 1 for head in heads)


def test_numbers_of_a_column_end_together() -> None:
    lines = table("metric", ["base"], [("a", ["1"]), ("bb", ["1234567"])]).splitlines()
    assert lines == ["metric     base", "a             1", "bb      1234567"]


def test_no_width_of_numbers_breaks_the_limit() -> None:
    for length in range(10, 45):
        text = table("metric", ["a", "b", "c", "d"], [("x" * 22, ["9" * length] * 4)])
        widest = max(map(len, text.splitlines()))
        assert widest <= 100
        assert widest + 2 + length > 100 or text.count("\n") == 1, "no column goes below that would have fitted"
