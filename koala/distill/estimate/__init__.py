"""What a run will take, before it starts: memory, batch size and time."""
