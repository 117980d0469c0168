"""Simulated acquisitions: one plausible ground, seen by any sensor of the table, written as genuine product folders.

`spectra` (what things reflect) -> `landscape` (where they are) -> `weather` (what hides them) -> `view` (what a
band sees) -> `safe`, `landsat` (the products). For the demo, for tests, and to try a configuration without an archive.
"""
