"""One module per tab; each has build(studio), which lays out the tab and wires it."""
