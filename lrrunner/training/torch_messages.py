"""Patterns of torch's messages that say little to whoever sees them; callers add what helps."""

UNUSED_PARAMETERS = r"Expected to have finished reduction in the prior iteration"
"""DistributedDataParallel, where a loss does not use all parameters."""

NEEDS_INDICES = r"expected (scalar type Long|target dtype to be Long)"
"""A loss over classes, given a target of floating-point numbers; the wording depends on torch's version."""

NEEDS_FLOATS = r"Found dtype Long but expected|result type \w+ can't be cast to the desired output type Long"
"""A regression loss, or one of probabilities, given a target of integers."""

SHAPES_DIFFER = r"must match the size of tensor|shapes cannot be multiplied|size mismatch"
"""A model or a loss, given tensors of other shapes than it expects."""
