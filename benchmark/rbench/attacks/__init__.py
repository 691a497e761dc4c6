"""Attacks as values, the engine that runs them, and the referee that judges what they claim."""
