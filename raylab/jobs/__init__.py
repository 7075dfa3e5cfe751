"""The only package that imports ray (rule 2): stages as Ray Data, Train, Tune and actor jobs."""
