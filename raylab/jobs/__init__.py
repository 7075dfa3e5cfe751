"""The only room that imports Ray: stages as jobs of Ray Data, Train and Tune, as actors and tasks."""
