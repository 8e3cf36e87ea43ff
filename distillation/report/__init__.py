"""What a run gave, for people: a figure, a page and a model card."""
