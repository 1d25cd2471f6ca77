"""Sound bounds of a computation graph over a set of inputs."""
