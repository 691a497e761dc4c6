"""The leaderboard as plain files: HTML, one style sheet, one script, pictures; drawn from the store and the witness files alone."""
