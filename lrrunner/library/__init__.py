"""``range_test()``: the sweep inside a script."""
