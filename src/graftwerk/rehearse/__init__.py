"""A Slurm cluster of one's own on this machine, and the accidents that happen to clusters.

A rehearsal lives in a folder: several virtual nodes on one host, or "machines" with addresses,
hostnames and cables of their own. Time limits, preemption, lost nodes, cut links and full disks
come when asked for, so that a run meets them before it meets the real ones (docs/rehearse.md).
"""
