"""How training ends by itself: nothing here imports torch."""


class TrainingError(RuntimeError):
    """Training cannot go on, and would not if it was started again; the message names the step and the batch."""
