"""What surrounds the network: the text, the labels, the batches, the losses, and what a finished run hands over."""
