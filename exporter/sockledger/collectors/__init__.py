"""From the ledger to metric families, a file a collector."""
