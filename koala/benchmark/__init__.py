"""Models measured over sizes and presets, with the prediction beside each time."""
