"""``range_test()``: the call inside a script."""
