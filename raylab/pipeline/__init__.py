"""The grid as stages: what is missing is made, and what is measured is gathered."""
