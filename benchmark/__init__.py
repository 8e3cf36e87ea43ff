"""What bench.py is made of: timing, other tools to measure beside ours, curves, random models."""
