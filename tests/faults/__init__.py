"""Faults from outside: killed processes, full disks."""
