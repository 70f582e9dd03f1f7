"""Models measured over sizes and presets, each time next to its prediction."""
