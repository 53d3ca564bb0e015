"""Double entry: the attach point's own count against the totals, under load.

C0 is the control total; after a grace period, a full flush and another grace period T are all totals; C1
is the control total again. A packet is added to control first, so C0 <= T <= C1 whatever goes on meanwhile:
C0 - T > 0 proves a loss, T - C1 > 0 a double count.
"""

from dataclasses import dataclass

from sockledger.kernel.sums import Traffic

NO_TRAFFIC = Traffic(0, 0, 0, 0)


@dataclass(slots=True)
class Reconciliation:
    """The largest differences found so far. They only rise, and stay 0 if nothing is lost."""

    unattributed: Traffic = NO_TRAFFIC
    overcounted: Traffic = NO_TRAFFIC

    def compare(self, before: Traffic, totals: Traffic, after: Traffic) -> bool:
        """Take in one flush's C0, T and C1; return whether a difference is larger than any before."""
        unattributed = Traffic(*map(max, self.unattributed, map(int.__sub__, before, totals)))
        overcounted = Traffic(*map(max, self.overcounted, map(int.__sub__, totals, after)))
        news = (unattributed, overcounted) != (self.unattributed, self.overcounted)
        self.unattributed, self.overcounted = unattributed, overcounted
        return news
