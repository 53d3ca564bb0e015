"""sockledger: exact network traffic per cgroup, counted in BPF local storage."""

from importlib.metadata import version

__version__ = version("sockledger")
