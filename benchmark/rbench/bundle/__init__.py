"""A model, its run and its evidence in one file, for somebody who trusts none of it."""
