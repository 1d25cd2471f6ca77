"""Check a counterexample with onnxruntime and exact fractions alone; no part of the verifier takes part.

    python benchmarks/check_witness.py MODEL.onnx PROPERTY.vnnlib WITNESS
    python benchmarks/check_witness.py RESULTS.csv BENCHMARKS WITNESSES     (all sat rows of a ``verifier bench`` table)

The witness gives X_0, X_1, ...; onnxruntime computes Y; every assertion of the VNN-LIB 1.0 property is then evaluated
in fractions. A literal between one input and a number that the model's type cannot represent counts as met by the two
neighbouring numbers of that type; how often that was needed is printed. BENCHMARKS holds the benchmarks'
folders, WITNESSES is the folder of ``--witness-dir``. Exit code 1 where an assertion fails or a counterexample is
missing, 2 where something else cannot be read.
"""

from __future__ import annotations

import csv
import gzip
import re
import sys
from fractions import Fraction
from math import prod
from pathlib import Path

import numpy as np
import onnxruntime

TOKEN = re.compile(r";[^\n]*|[()]|[^\s();]+")
COMPARE = {
    "<=": Fraction.__le__, ">=": Fraction.__ge__, "<": Fraction.__lt__, ">": Fraction.__gt__, "=": Fraction.__eq__,
}


def content(path: Path) -> bytes:
    """A file's bytes; gzip is opened, and ``name.gz`` stands in for ``name``."""
    data = (path if path.exists() else path.with_name(path.name + ".gz")).read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def outputs(model: bytes, witness: dict[str, str]) -> tuple[dict[str, Fraction], type[np.floating]]:
    """The exact values of X and of what onnxruntime computes from them, and the model's number type."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    dtype = np.float64 if session.get_inputs()[0].type == "tensor(double)" else np.float32
    x = np.array([float(witness[f"X_{i}"]) for i in range(sum(k[0] == "X" for k in witness))], dtype=dtype)
    shapes = [[d if isinstance(d, int) and d > 0 else 1 for d in tensor.shape] for tensor in session.get_inputs()]
    assert sum(map(prod, shapes)) == len(x), f"{len(x)} values for {sum(map(prod, shapes))} inputs"
    parts = np.split(x, np.cumsum([prod(shape) for shape in shapes])[:-1])
    names = [tensor.name for tensor in session.get_inputs()]
    feed = {n: part.reshape(shape) for n, part, shape in zip(names, parts, shapes, strict=True)}
    y = np.concatenate([np.asarray(v).reshape(-1) for v in session.run(None, feed)])
    named = {f"X_{i}": Fraction(float(v)) for i, v in enumerate(x)}
    return named | {f"Y_{i}": Fraction(float(v)) for i, v in enumerate(y)}, dtype


def literal(
    relation: str, left: object, right: object, values: dict[str, Fraction], dtype: type, tolerance: Fraction
) -> tuple[bool, int]:
    """Whether a comparison holds, up to an absolute tolerance, and 1 where it needed a neighbouring number."""
    one, two = (values[t] if isinstance(t, str) else t for t in (left, right))
    if COMPARE[relation](one, two) or abs(one - two) < tolerance:
        return True, 0
    if not (isinstance(left, str) and left[0] == "X" and isinstance(right, Fraction)):
        return False, 0
    near = dtype(float(right))
    neighbours = (near, np.nextafter(near, dtype(-np.inf)), np.nextafter(near, dtype(np.inf)))
    below = max((Fraction(float(n)) for n in neighbours if Fraction(float(n)) < right), default=None)
    above = min((Fraction(float(n)) for n in neighbours if Fraction(float(n)) > right), default=None)
    return Fraction(float(near)) != right and one in (below, above), 1


def failures(
    text: str, values: dict[str, Fraction], dtype: type, tolerance: Fraction = Fraction(0)
) -> tuple[int, int]:
    """How many assertions fail, and how many literals needed a neighbouring number. One pass, no recursion."""
    stack: list[list[object]] = [[]]
    failed = widened = 0
    for token in TOKEN.findall(text):
        if token == "(":
            stack.append([])
        elif token != ")" and token[0] != ";":
            stack[-1].append(Fraction(token) if re.match(r"[+-]?\.?\d", token) else token)
        elif token == ")":
            head, *rest = stack.pop()
            result: object = None
            if head in COMPARE:
                result, extra = literal(head, *rest, values, dtype, tolerance)
                widened += extra if result else 0
            elif head in ("and", "or"):
                result = all(rest) if head == "and" else any(rest)
            elif head in ("+", "-", "*"):
                terms = [values[t] if isinstance(t, str) else t for t in rest]
                result = {"+": sum, "*": prod}[head](terms) if head != "-" else (
                    terms[0] - sum(terms[1:]) if len(terms) > 1 else -terms[0])
            elif head == "assert":
                failed += not rest[0]
            if result is not None:
                stack[-1].append(result)
    return failed, widened


def check(model: Path, prop: Path, witness: Path) -> tuple[int, int]:
    """Failed assertions and widened literals of one counterexample."""
    pairs = dict(re.findall(r"\(\s*(X_\d+)\s+([^\s()]+)\s*\)", witness.read_text(encoding="utf-8")))
    values, dtype = outputs(content(model), pairs)
    return failures(content(prop).decode(), values, dtype)


def rows(table: Path, benchmarks: Path, witnesses: Path) -> list[tuple[Path, Path, Path]]:
    """Model, property and witness of every sat row of a table of ``verifier bench --witness-dir``."""
    found = []
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["result"] == "sat":
                names = [Path(row[key].removesuffix(".gz")) for key in ("onnx", "vnnlib")]
                witness = witnesses / row["benchmark"] / f"{names[0].stem}_{names[1].stem}.counterexample"
                folder = benchmarks / row["benchmark"]
                found.append((folder / names[0], folder / names[1], witness))
    return found


def main() -> None:
    """Check one counterexample or all of a table."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    if len(sys.argv) != 4:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    try:
        _check_all(*map(Path, sys.argv[1:]))
    except OSError as error:
        print(f"check_witness: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)


def _check_all(first: Path, second: Path, third: Path) -> None:
    """Exits with 1 where one is wrong or missing."""
    triples = rows(first, second, third) if first.suffix == ".csv" else [(first, second, third)]
    wrong = neighbouring = 0
    for triple in triples:
        if not triple[2].is_file():
            print(f"{triple[2]}: there is no counterexample")
            wrong += 1
            continue
        failed, widened = check(*triple)
        wrong += failed > 0
        neighbouring += widened > 0
        if failed:
            print(f"{triple[2]}: {failed} assertions fail")
    print(f"{len(triples)} counterexamples checked, {wrong} wrong, {neighbouring} with inputs at neighbouring numbers")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
