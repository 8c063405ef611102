"""What is measured with training steps: sweep passes, repeats, confirmation runs."""
