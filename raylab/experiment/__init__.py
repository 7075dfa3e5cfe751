"""What an experiment is: configurations, cells, grids, ladders and variants, as frozen dataclasses."""
