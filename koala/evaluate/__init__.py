"""Scores of models and of the instruments that score them."""
