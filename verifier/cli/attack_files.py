"""What ``verifier attack --data`` writes beside its answer: the points as arrays, and pictures of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from verifier.attacks.classifier import Classifier
    from verifier.attacks.evaluation import Evaluation
    from verifier.examples import Examples


def write_points(path: Path, classifier: Classifier, found: Evaluation) -> None:
    """The arrays ``x`` (what was found, else the example), ``y`` (the classes that were to be kept) and ``broken``."""
    import numpy as np

    points = found.points.reshape(-1, *_example_shape(classifier))
    with open(path, "wb") as target:  # numpy would add its own ending to a name
        np.savez(target, x=points, y=found.labels, broken=found.broken)


def check_pictures(folder: Path, classifier: Classifier) -> None:
    """Raise ``InputError`` now where no picture could be drawn: not images, or no library for them."""
    import numpy as np

    from verifier.report import pictures

    pictures.as_image(np.zeros(_example_shape(classifier)))
    pictures.check_library(folder)


def write_pictures(
    folder: Path,
    classifier: Classifier,
    examples: Examples,
    found: Evaluation,
    data_range: tuple[str, str] | None,
) -> dict[int, str]:
    """One PNG for each example that an attack broke: original, found point, difference. Their paths by the numbers of
    the examples."""
    import numpy as np

    from verifier.property.numbers import exact
    from verifier.report import pictures

    folder.mkdir(parents=True, exist_ok=True)
    ends = (float(found.points.min()), float(found.points.max()))
    if data_range is not None:
        ends = (float(exact(data_range[0], "data range")), float(exact(data_range[1], "data range")))
    ends = ends if ends[0] < ends[1] else (ends[0], ends[0] + 1)
    written = {}
    for k in np.flatnonzero(found.by >= 0).tolist():
        label, other, shape = int(found.labels[k]), int(found.others[k]), _example_shape(classifier)
        words = f"{label} -> {other}, {found.rows[found.by[k]].attack}"
        row = pictures.triple(examples.x[k].reshape(shape), found.points[k].reshape(shape), words, ends)
        path = folder / f"{k:05d}-{label}-{other}.png"
        written[k] = str(pictures.sheet([row], path))
    return written


def _example_shape(classifier: Classifier) -> tuple[int, ...]:
    """Of one example: the model's, a leading 1 aside."""
    shape = classifier.shape
    return shape[1:] if len(shape) > 1 and shape[0] == 1 else shape
