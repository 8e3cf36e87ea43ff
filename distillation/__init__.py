"""What surrounds the network: the text, the labels, the batches, the losses, and what a finished run hands over."""


class RunError(RuntimeError):
    """A run that could not go on: what happened and how to continue. Exit status 1."""
