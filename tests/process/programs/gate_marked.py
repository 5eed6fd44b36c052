"""Tests with marks, of which CI's gate reads the report. Copied to a tree of its own."""

import pytest

pytestmark = [pytest.mark.slow]


@pytest.mark.quick
def test_quick() -> None:
    pass


@pytest.mark.once
def test_once() -> None:
    pass
