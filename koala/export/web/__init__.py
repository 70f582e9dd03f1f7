"""Models as a web page that draws in the visitor's own browser."""
