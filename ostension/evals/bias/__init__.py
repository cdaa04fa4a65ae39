"""Bias probes for any label set and any groups: rates with tests between groups, harms, skewed labels, near misses."""
