"""Metric families to text."""
