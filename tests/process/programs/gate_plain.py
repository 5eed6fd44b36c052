"""Tests without marks, of which CI's gate reads the report. Copied to a tree of its own."""

import pytest


@pytest.mark.parametrize("number", [1, 2])
def test_numbers(number: int) -> None:
    assert number


class TestClass:
    def test_method(self) -> None:
        pass
