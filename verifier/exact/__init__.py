"""Queries as mixed-integer programs."""
