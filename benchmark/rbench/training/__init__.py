"""Training by recipe: one loop, whose inner attack is the evaluation's own."""
