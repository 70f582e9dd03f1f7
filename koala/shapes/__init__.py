"""The shapes world: scenes drawn by code, captioned by code and judged by code."""
