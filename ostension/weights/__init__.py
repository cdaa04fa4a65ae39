"""Arithmetic on the weights of models, from files to files (and live, for whole curves)."""
