from sockledger.ledger.scrapers import MOST, RECENT, Scrapers


class Clock:
    def __init__(self) -> None:
        self.now = 10 * RECENT

    def __call__(self) -> int:
        return self.now


def test_two_pages_after_the_end() -> None:
    clock = Clock()
    scrapers = Scrapers(clock)
    end = clock.now
    assert scrapers.have_seen(end), "there is none"
    for began, seen in ((end - 1, False), (end, False), (end + 1, False), (end + 1, True)):
        scrapers.note_page("one", 0, began)
        assert scrapers.have_seen(end) == seen
    assert not scrapers.have_seen(end + 1)


def test_all_of_them() -> None:
    clock = Clock()
    scrapers = Scrapers(clock)
    for name in ("one", "two", "one"):
        scrapers.note_page(name, 0, clock.now)
    assert not scrapers.have_seen(clock.now - 1)
    scrapers.note_page("two", 0, clock.now)
    assert scrapers.have_seen(clock.now - 1)


def test_one_that_stays_away_is_none_any_more() -> None:
    clock = Clock()
    scrapers = Scrapers(clock)
    scrapers.note_page("one", 0, clock.now)
    end = clock.now + 1
    clock.now += RECENT - 1
    assert not scrapers.have_seen(end)
    clock.now += 1
    assert scrapers.have_seen(end)


def test_the_oldest_of_too_many_is_forgotten() -> None:
    clock = Clock()
    scrapers = Scrapers(clock)
    scrapers.note_page("first", 0, 0)
    for number in range(MOST):
        for _ in range(2):
            scrapers.note_page(str(number), 0, clock.now)
    assert scrapers.have_seen(1)


def test_scrapers_of_a_daemon_before_have_yet_to_come() -> None:
    clock = Clock()
    scrapers = Scrapers(clock, others=True)
    scrapers.note_page("one", 0, clock.now)
    scrapers.note_page("one", 0, clock.now)
    assert not scrapers.have_seen(1), "another one may be slower"
    clock.now += RECENT
    assert scrapers.have_seen(1)


def test_one_that_was_forgotten_sees_all_as_new_at_first() -> None:
    clock = Clock()
    scrapers = Scrapers(clock)
    for number in range(MOST):
        scrapers.note_page(str(number), 7, 0)
    scrapers.note_page("0", 7, 0)
    scrapers.note_page("one more", 7, 0)
    assert (scrapers.seen_by("0"), scrapers.seen_by("1")) == (7, 0)
    clock.now += RECENT
    assert (scrapers.seen_by("0"), scrapers.seen_by("1")) == (7, 7)
