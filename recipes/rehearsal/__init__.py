"""The program at full size on a card that is only described: shapes, types, devices and memory, and no numbers."""
