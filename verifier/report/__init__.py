"""Results as files: the JSON record of a verdict with its schema, and tables."""
