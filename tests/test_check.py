from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc.batch import check
from hpc.data.units import Bytes, Seconds


@given(st.floats(0, 2**53, exclude_max=True, allow_subnormal=False), st.integers(0, 2**53 - 1))
def test_units_come_back_as_they_went(seconds: float, size: int) -> None:
    seconds = max(seconds, 1e-9) if seconds else 0.0
    assert Seconds.parse(check.plain(Seconds(seconds))) == pytest.approx(seconds, rel=1e-11)
    assert Seconds.parse(check.plain(Seconds(round(seconds, 3)))) == round(seconds, 3)
    assert Bytes.parse(check.plain(Bytes(size))) == size
