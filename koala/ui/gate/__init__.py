"""Checks of every request before Gradio sees it: its origin, its size and its form."""
