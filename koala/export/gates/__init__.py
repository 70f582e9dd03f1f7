"""What an export must pass before it is called done."""
