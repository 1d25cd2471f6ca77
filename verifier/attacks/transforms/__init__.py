"""Threat models of transformations: boxes of parameters, and differentiable maps from parameters to inputs.

A point of such a threat model is exactly: parameters of the model's element type inside of their box; the input is what
the map gives for them in that type, clamped to the data range. ``views`` says how a transformation becomes the
``view`` of a ``Problem``, ``layout`` where the pixels are; the other files hold one kind of transformation each,
``grid`` the attacks that suit few parameters, ``universal`` one perturbation for all examples, ``transfer`` attacks by
another model.
"""
