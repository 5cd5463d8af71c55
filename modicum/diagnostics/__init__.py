"""Diagnostics: one question a file, each a function that returns a `Finding`: rows, charts and what they mean."""
