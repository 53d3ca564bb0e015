"""The short form of `make soak`."""

from tests.daemon.support import Surroundings
from tests.kernel.machine import Netns
from tests.soak.soak import SHORT, soak


def test_holds_no_more_at_the_end(place: Surroundings, netns: Netns) -> None:
    assert soak(place, netns, SHORT).wrong == []
