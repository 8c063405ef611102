"""Range tests on the trainers of other libraries, each imported only by who asks for it."""
