"""Invariance examples: the generating attack of Tramèr et al. 2020, the page on which people label its candidates, and their votes."""
