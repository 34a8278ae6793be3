"""Atlases in the formats of others: one file per format, out and in."""
