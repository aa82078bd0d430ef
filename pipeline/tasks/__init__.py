"""Where problems come from, and who says that an answer is right."""
