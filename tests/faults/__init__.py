"""What may happen to checkpoints: kills at random points, damage, disks that are full or read-only, two writers.

Each run draws other points to kill at and prints its seed; `CAMBIUM_FAULT_SEED=123 pytest tests/faults` repeats it.
`make test-long` kills ten times as often. The tests that mount a small tmpfs need root, and say so where they cannot.
"""
