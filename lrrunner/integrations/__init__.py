"""Range tests on the trainers of other libraries; each module imports its library, so import only the one you need."""
