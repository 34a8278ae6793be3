"""What steering does where nothing else is said: the same in Python, in the shell and in the browser."""

from __future__ import annotations

from gemscope.edits.strength import Amount

STRENGTH = Amount(0.5, "norm")
"""Of each feature: half as long as activations are there."""
TEMPERATURE = 0.5
SEED = 16
TOKENS = 40
"""New ones, at most."""
SAMPLES = 1
"""Texts of each kind."""
SWEPT = 3
"""Texts at each of several strengths."""

BREAKS = 0.7
"""Share of the median norm from which on text breaks down: of the bundled model's one in six (tools/breakdown.py)."""
SCALE = 1.0
"""The share at the ends of a slider: there every second text has broken down."""
