"""A logarithmic pool of experts, and a model that uses it."""
