"""The app: Gradio faces on the core; nothing outside this package imports gradio."""
