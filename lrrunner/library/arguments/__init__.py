"""What a script passes to the call: options and objects, their checks, hints for their errors."""
