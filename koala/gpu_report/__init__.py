"""What a card can do, in one report of a few minutes: every section on networks of random weights."""
