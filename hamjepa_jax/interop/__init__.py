"""Exchange with other frameworks: names and layouts of weights."""
