"""Data by built-in name or path: what it holds, its labels, and which rows are for testing."""
