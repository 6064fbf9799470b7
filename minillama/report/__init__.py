"""What is said and drawn: of a training while it runs, of a model before it is trained, of two runs side by side, of speed."""
