"""A counter's life, as scrapers and others see it."""

import pytest
from tests.daemon.support import Page, Surroundings
from tests.daemon.traffic import send_datagrams
from tests.kernel.machine import Netns, new_cgroup

from sockledger.kernel.datapath import ATTACHED


def sent_by(page: Page, cgroup: str) -> list[float]:
    return page.values("sockledger_transmit_bytes_total", cgroup=cgroup)


def test_born_at_zero_for_each_scraper(place: Surroundings, netns: Netns) -> None:
    with new_cgroup(place.cgroup.path, "a") as a, new_cgroup(place.cgroup.path, "b") as b:
        daemon = place.run()
        assert sent_by(daemon.page("one"), "/a") == []
        first = send_datagrams(netns, a, a)
        assert sent_by(daemon.settled("one"), "/a") == [0]
        assert sent_by(daemon.page("one"), "/a") == [first]
        assert sent_by(daemon.page("two"), "/a") == [0], "the other one has not seen it yet"
        assert sent_by(daemon.page(), "/a") == [first], "who is no scraper sees values"
        assert sent_by(daemon.page("two"), "/a") == [first]

        more = send_datagrams(netns, a, a) + first
        other = send_datagrams(netns, b, b)
        page = daemon.settled("two")
        assert sent_by(page, "/a") == [more], "only what is new is 0"
        assert sent_by(page, "/b") == [0]
        page = daemon.page("two")
        assert sent_by(page, "/b") == [other]


@pytest.mark.parametrize("openmetrics", [False, True])
def test_only_counters_are_born(place: Surroundings, openmetrics: bool) -> None:
    page = place.run().page("one", openmetrics=openmetrics)
    assert page.sum("build_info") == 1
    assert page.sum("bpf_program_attached") == len(ATTACHED)
    assert page.sum("config_last_reload_successful") == 1


def test_the_first_scrape_is_all_zero(place: Surroundings, netns: Netns) -> None:
    """Traffic from before the first scrape is an increase, too."""
    with new_cgroup(place.cgroup.path, "a") as a:
        daemon = place.run()
        sent = send_datagrams(netns, a, a)
        assert daemon.settled("one").sum("attach_point_transmit_bytes_total") == 0
        assert daemon.page("one").sum("attach_point_transmit_bytes_total") == sent
