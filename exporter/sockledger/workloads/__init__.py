"""Whose traffic it is: cgroup to name."""
