"""Other runtimes than torch for the same request and the same result; each is imported when a model asks for it."""
