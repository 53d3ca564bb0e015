"""What was counted: flush, totals, reconciliation, a counter's life."""
