"""What came of a run: its history, pictures, text and checkpoints, for people."""
