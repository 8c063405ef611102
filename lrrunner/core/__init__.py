"""The pure core: numpy only, float64, no I/O, no torch."""
