"""Watching a laboratory: what a grid writes of itself while it runs, and the page that shows it."""
