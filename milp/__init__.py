"""Exact encodings of a computation graph as mixed-integer linear programs, and bounds tightened with them."""
