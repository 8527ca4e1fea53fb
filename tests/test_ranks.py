"""A broken process fails the test that has started it, and so does one that waits for ever."""

import time

import pytest
from ranks import spawn


def breaks(rank: int) -> None:
    if rank:
        raise ValueError(f"rank {rank} is broken")
    time.sleep(3600)


def waits(rank: int) -> None:
    time.sleep(3600)


def test_what_one_process_raises_is_raised() -> None:
    with pytest.raises(Exception, match=r"(?s)in breaks\n.*rank 1 is broken"):
        spawn(breaks, 2)


def test_a_hang_is_an_error() -> None:
    with pytest.raises(AssertionError, match="some of 1 processes have not ended after 2 s"):
        spawn(waits, 1, seconds=2)
