"""Text on its way to batches: sources, sentences, a corpus, the teacher's labels."""
