"""The verbs: each a Python function and, with the same arguments, a command."""
