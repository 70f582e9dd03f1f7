"""Other programs read our files: what each makes of them, in the program's own code from a folder of its source."""
