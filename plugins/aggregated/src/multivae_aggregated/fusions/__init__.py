"""Further rules of fusion, beside those of the core; any model may use them by name."""
