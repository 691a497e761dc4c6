"""What is measured beside verdicts: how good a learned set is."""
