"""What every request passes before Gradio sees it: whose page it comes from, how large it is, what it asks."""
