"""Models on disk: one module per layout, and what finds, checks, loads, saves and converts them."""
