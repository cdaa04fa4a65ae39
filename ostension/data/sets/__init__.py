"""Labelled data in the forms in which it lies: folders, tables, Parquet, tar shards, arrays, Hugging Face folders, text."""
