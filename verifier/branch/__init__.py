"""Branch and bound: what is open, how it is split, and when it is refuted.

``problem`` lays out a query's cases as tensors; ``root`` bounds whole boxes; ``input_split`` and ``activation_split``
search where that is not enough; ``clip`` cuts boxes and combines literals.
"""
