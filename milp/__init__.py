"""The place of exact encodings of a computation graph as mixed-integer linear programs. Nothing is here yet."""
