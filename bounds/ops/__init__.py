"""The operators: one file for each family; ``bounds.ops.base`` says what an operator is."""
