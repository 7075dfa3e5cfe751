"""What is kept: artifacts, whole or absent, and the tables of results."""
