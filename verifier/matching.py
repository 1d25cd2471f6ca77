"""Which model a declared network means, and which of its tensors the declared variables are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from verifier.errors import InputError
from verifier.query import Model, NetworkDeclaration, Specification, Variable

if TYPE_CHECKING:
    from verifier.network import Network


def match_networks(
    given: Mapping[str, Network], specification: Specification
) -> tuple[tuple[Model, ...], tuple[Network, ...]]:
    """The models in the order of the declarations, their tensors placed in the flat vectors, and their networks.

    Raises ``InputError`` where a network is missing or too many, or where numbers, sizes or element types differ.
    """
    declared = specification.networks
    own = [d.name for d in declared if not d.equal_to]
    if len(given) == len(own) == 1:
        given = {own[0]: next(iter(given.values()))}
    elif set(given) != set(own):
        names = ", ".join(f"--network {n}=FILE" for n in own)
        raise InputError(f"the property declares {len(own)} networks and {len(given)} are given; name them: {names}")
    models, networks = [], []
    chosen: dict[str, Network] = {}
    for declaration in declared:
        network = chosen[declaration.equal_to] if declaration.equal_to else given[declaration.name]
        chosen[declaration.name] = network
        networks.append(network)
        match = _match_flat if specification.version[0] == "1" else _match_tensors
        models.append(match(declaration, network))
    return tuple(models), tuple(networks)


def _match_flat(declaration: NetworkDeclaration, network: Network) -> Model:
    """VNN-LIB 1.0: X and Y number the elements of all inputs and outputs, one after the other."""
    sides = []
    for letter, variables, tensors in (
        ("X", declaration.inputs, network.inputs),
        ("Y", declaration.outputs, network.outputs),
    ):
        count, size = sum(v.size for v in variables), sum(t.size for t in tensors)
        if count != size:
            what = "inputs" if letter == "X" else "outputs"
            raise InputError(
                f"the property does not fit the model: it declares {count} {what} "
                f"({letter}_0 to {letter}_{count - 1}), the model has {size} ({_listed(tensors)})"
            )
        sides.append(_placed(tensors, variables[0].start))
    return Model(declaration.name, network.model, *sides)


def _match_tensors(declaration: NetworkDeclaration, network: Network) -> Model:
    """VNN-LIB 2: by the ONNX names where they are given, otherwise in order."""
    inputs = _side(declaration.name, "inputs", declaration.inputs, declaration.input_names, network.inputs)
    outputs = _side(declaration.name, "outputs", declaration.outputs, declaration.output_names, network.outputs)
    return Model(declaration.name, network.model, inputs, outputs)


def _side(
    network: str, what: str, variables: Sequence[Variable], names: Sequence[str], tensors: Sequence[Variable]
) -> tuple[Variable, ...]:
    if len(variables) != len(tensors):
        raise InputError(
            f"network {network}: the property declares {len(variables)} {what}, the model has {len(tensors)} "
            f"({_listed(tensors)})"
        )
    known = [t.name for t in tensors]
    placed = list(tensors)
    for position, (variable, name) in enumerate(zip(variables, names, strict=True)):
        if name and name not in known:
            raise InputError(f"network {network}: the model has no {what[:-1]} {name!r} ({_listed(tensors)})")
        index = known.index(name) if name else position
        tensor = tensors[index]
        if [d for d in variable.shape if d != 1] != [d for d in tensor.shape if d != 1]:
            raise InputError(
                f"network {network}: {variable.name} is declared with shape {list(variable.shape)}, the model's "
                f"{tensor.name} has shape {list(tensor.shape)}"
            )
        if variable.dtype not in ("real", tensor.dtype):
            raise InputError(
                f"network {network}: {variable.name} is declared {variable.dtype}, the model's {tensor.name} is "
                f"{tensor.dtype}"
            )
        placed[index] = replace(tensor, start=variable.start)
    if any(names) and (not all(names) or len(set(names)) != len(names)):
        raise InputError(f"network {network}: either all of its {what} have ONNX names, different ones, or none has")
    return tuple(placed)


def _placed(tensors: Sequence[Variable], start: int) -> tuple[Variable, ...]:
    placed = []
    for tensor in tensors:
        placed.append(replace(tensor, start=start))
        start += tensor.size
    return tuple(placed)


def _listed(tensors: Sequence[Variable]) -> str:
    return ", ".join(f"{t.name} {list(t.shape)}" for t in tensors)
