"""sockledger: exact network traffic per cgroup, counted in BPF maps."""

from importlib.metadata import version

__version__ = version("sockledger")
