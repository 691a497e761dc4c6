"""Perturbation sets: what the adversary may do to one image. A set knows x and θ; it never sees a model."""
