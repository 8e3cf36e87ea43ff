"""The student: which layers, how wide, which vocabulary, how many dimensions."""
