"""One training step: the loss and its items, the gradient, the table that ranks reduce."""
