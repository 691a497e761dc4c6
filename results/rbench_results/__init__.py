"""What is known and how it is shown: records, the database of verdicts, the figures drawn from it, the pages. No model, no threat set."""
