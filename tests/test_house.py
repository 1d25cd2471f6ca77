"""The rules of the house, held from the sources.

Imports go one way, light modules stay light, files stay short, nothing mutable lives in a module, everything public
has a docstring, ``docs/api.txt`` says what is public. An exception to a rule stands in ``EXCEPTIONS`` with its reason.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType, ModuleType

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGES = ("bounds", "milp", "verifier")
STANDARD = sys.stdlib_module_names

# What each package may import besides the standard library, itself, and the packages before it.
ALLOWED = MappingProxyType({
    "bounds": {"torch", "jaxtyping"},
    "milp": {"bounds", "torch", "jaxtyping", "highspy", "pulp"},
    "verifier": {
        "bounds", "milp", "torch", "jaxtyping", "highspy", "pulp", "numpy", "scipy", "onnx", "onnxruntime", "rich",
        "PIL", "matplotlib", "jinja2", "ray", "foolbox",
        "google",  # protobuf: how onnx says that a file is no model
    },
})
HEAVY = ("torch", "onnx", "onnxruntime", "scipy", "highspy", "pulp", "rich", "numpy", "matplotlib", "ray")

# (rule, where) -> why. The only place for exceptions.
EXCEPTIONS: MappingProxyType[tuple[str, str], str] = MappingProxyType({})

LONGEST_FILE = 400
MUTABLE_CALLS = {
    "list", "dict", "set", "bytearray", "defaultdict", "OrderedDict", "Counter", "deque", "WeakKeyDictionary",
    "WeakValueDictionary", "Lock", "RLock", "local",
}
FOREIGN = (
    re.compile(r"(?<![\w.}])/(?:work|root|home|Users|tmp)/\w"),  # a path of somebody's machine
    re.compile(r"(?:files\.python" + r"hosted|pypi|download\.py" + r"torch)\.org"),  # a host of packages
)


def sources(*folders: str) -> list[Path]:
    """The Python files of these folders."""
    return sorted(path for folder in folders for path in (CHECKOUT / folder).rglob("*.py"))


def name(path: Path) -> str:
    """The path inside the checkout, with forward slashes."""
    return path.relative_to(CHECKOUT).as_posix()


def module_name(path: Path) -> str:
    """The dotted name of a file's module."""
    parts = path.relative_to(CHECKOUT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def excused(rule: str, where: str) -> bool:
    """Whether the list of exceptions names this place."""
    return (rule, where) in EXCEPTIONS


def report(rule: str, found: list[str]) -> None:
    """Fail with every finding that is not excused."""
    left = [entry for entry in found if not excused(rule, entry.split(":")[0])]
    assert not left, f"{rule}:\n  " + "\n  ".join(left)


def imported(node: ast.AST) -> list[str]:
    """The modules that a statement or call imports, by their dotted names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: relative imports hide where a name comes from"
        return [node.module or ""] + [f"{node.module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if function in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
            return [node.args[0].value]
    return []


def is_type_checking(node: ast.AST) -> bool:
    """``if TYPE_CHECKING:``"""
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported: no function bodies, nothing for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            assert isinstance(child, ast.If)
            for other in child.orelse:
                yield other
                yield from at_import(other)
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from at_import(child)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    allowed = ALLOWED[package] | {package}
    found = []
    for path in sources(package):
        for node in ast.walk(tree(path)):
            for module in imported(node):
                top = module.split(".")[0]
                if top not in allowed and top not in STANDARD:
                    found.append(f"{name(path)}:{node.lineno}: {package} must not import {module}")  # type: ignore[attr-defined]
    report("import direction", found)


def reached(start: str) -> dict[str, str]:
    """Every module that importing ``start`` imports at once, each with the module that asks for it."""
    seen: dict[str, str] = {}
    stack = [(start, "the start")]
    while stack:
        module, asker = stack.pop()
        if module in seen:
            continue
        seen[module] = asker
        parts = module.split(".")
        if parts[0] not in PACKAGES:
            continue
        stack.extend((".".join(parts[:i]), module) for i in range(1, len(parts)))
        file = CHECKOUT.joinpath(*parts)
        path = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        if path.is_file():
            stack.extend((found, module) for node in at_import(tree(path)) for found in imported(node))
    return seen


def light_modules() -> list[str]:
    """Modules that no command may wait for: the package itself and the whole command line."""
    return ["verifier", *(module_name(path) for path in sources("verifier/cli"))]


@pytest.mark.parametrize("module", light_modules())
def test_light_modules_import_nothing_heavy(module: str) -> None:
    found = [f"{module}: imports {other} through {asker}" for other, asker in reached(module).items() if other in HEAVY]
    report("light modules", found)


@pytest.mark.parametrize(
    "code",
    [
        "import verifier",
        "import verifier; verifier.__version__; dir(verifier)",
        "from verifier.cli import main; import contextlib\nwith contextlib.suppress(SystemExit): main(['--version'])",
        "from verifier.cli import main; import contextlib\nwith contextlib.suppress(SystemExit): main(['--help'])",
    ],
)
def test_light_commands_leave_the_heavy_alone(code: str, tmp_path: Path) -> None:
    if "cli" in code and importlib.util.find_spec("verifier.cli") is None:
        pytest.fail("verifier.cli does not exist")
    code += f"\nimport sys\nfound = sorted(set(sys.modules) & set({HEAVY!r}))\nassert not found, found"
    environment = dict(os.environ)
    if not os.environ.get("NN_VERIFIER_INSTALLED"):
        environment["PYTHONPATH"] = str(CHECKOUT)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_files_stay_short() -> None:
    found = []
    for path in sources(*PACKAGES, "tests", "benchmarks", "docs"):
        count = len(path.read_text(encoding="utf-8").splitlines())
        if count > LONGEST_FILE:
            found.append(f"{name(path)}: {count} lines, at most {LONGEST_FILE}")
    report("length", found)


def mutable(value: ast.expr | None) -> bool:
    """Whether an expression makes an object that can be changed later."""
    if isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp):
        return True
    if isinstance(value, ast.Call):
        called = value.func.attr if isinstance(value.func, ast.Attribute) else getattr(value.func, "id", "")
        return called in MUTABLE_CALLS
    return False


def test_no_state_in_modules_and_classes() -> None:
    found = []
    for path in sources(*PACKAGES):
        for node in at_import(tree(path)):
            if not isinstance(node, ast.Assign | ast.AnnAssign) or not mutable(node.value):
                continue
            targets = [ast.unparse(t) for t in (node.targets if isinstance(node, ast.Assign) else [node.target])]
            if targets != ["__all__"] and not all("." in t or "[" in t for t in targets):
                found.append(f"{name(path)}:{node.lineno}: {', '.join(targets)} can be changed")
        found += [
            f"{name(path)}:{node.lineno}: global {', '.join(node.names)}"
            for node in ast.walk(tree(path)) if isinstance(node, ast.Global)
        ]
    report("module state", found)


def test_torch_flags_are_set_in_one_place() -> None:
    """Default dtypes and devices never; flags of the backends in one file, which puts them back."""
    found, files = [], set()
    for path in sources(*PACKAGES):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and re.fullmatch(r"torch\.set_default_\w+", ast.unparse(node.func)):
                found.append(f"{name(path)}:{node.lineno}: {ast.unparse(node.func)}")
            if isinstance(node, ast.Assign) and any(ast.unparse(t).startswith("torch.backends.") for t in node.targets):
                files.add(name(path))
    if len(files) > 1:
        found += [f"{file}: sets torch.backends, and so do other files" for file in sorted(files)]
    report("torch flags", found)


def test_print_belongs_to_the_command_line() -> None:
    found = [
        f"{name(path)}:{node.lineno}: print"
        for path in sources(*PACKAGES) if not name(path).startswith("verifier/cli/")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    report("print", found)


def test_no_dispatch_on_attributes() -> None:
    """``hasattr`` asks an object what it is; types say it."""
    found = [
        f"{name(path)}:{node.lineno}: hasattr"
        for path in sources(*PACKAGES) for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hasattr"
    ]
    report("hasattr", found)


def test_no_function_is_called_like_a_module_beside_it() -> None:
    """``package.name`` is one thing: a function that a package defines or imports would hide the module there."""
    found = []
    for path in sources(*PACKAGES):
        beside = {p.stem for p in path.parent.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
        names = {n.name for n in tree(path).body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
        if path.name == "__init__.py":
            modules = {module_name(p) for p in sources(*PACKAGES)}
            for node in tree(path).body:
                if isinstance(node, ast.ImportFrom):
                    names |= {a.asname or a.name for a in node.names if f"{node.module}.{a.name}" not in modules}
            names |= set(public(module_name(path)))
        found += [f"{name(path)}: {clash} is also a module" for clash in sorted(names & beside - {path.stem})]
    report("names", found)


def public(package: str) -> list[str]:
    """The public names of a package."""
    return sorted(getattr(importlib.import_module(package), "__all__", ()))


def every_module() -> list[str]:
    """All modules of the packages, except those that run when imported."""
    return [m for m in map(module_name, sources(*PACKAGES)) if not m.endswith("__main__")]


@pytest.mark.parametrize("module", every_module())
def test_everything_public_has_a_docstring(module: str) -> None:
    loaded = importlib.import_module(module)
    found = [] if (loaded.__doc__ or "").strip() else [f"{module}: the module has no docstring"]
    for key, value in own(loaded):
        if not (value.__doc__ or "").strip() or (inspect.isclass(value) and generated(value)):
            found.append(f"{module}.{key}: no docstring")
        if inspect.isclass(value) and not getattr(value, "_is_protocol", False):
            found += [f"{module}.{key}.{member}: no docstring" for member in bare_members(value)]
    report("docstring", found)


def own(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Public classes and functions that the module itself defines."""
    for key, value in vars(module).items():
        if key.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value) or inspect.isfunction(value):
            yield key, value


def generated(cls: type) -> bool:
    """Whether the docstring is the signature that ``dataclass`` writes where there is none."""
    return (cls.__doc__ or "").startswith(f"{cls.__name__}(")


def bare_members(cls: type) -> list[str]:
    """Public methods and properties without a docstring of their own or of the method that they implement."""
    bare = []
    for key, value in vars(cls).items():
        function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        if key.startswith("_") or not (inspect.isfunction(function) or isinstance(value, property)):
            continue
        if not (inspect.getdoc(getattr(cls, key)) or "").strip():
            bare.append(key)
    return bare


def test_the_list_of_public_names_is_true() -> None:
    specification = importlib.util.spec_from_file_location("api", CHECKOUT / "docs" / "api.py")
    assert specification is not None and specification.loader is not None
    api = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(api)
    written = (CHECKOUT / "docs" / "api.txt").read_text(encoding="utf-8")
    assert written == api.text(), "docs/api.txt is out of date: python docs/api.py"


def test_what_is_public_exists() -> None:
    for package in PACKAGES:
        module = importlib.import_module(package)
        for key in public(package):
            assert getattr(module, key) is not None


def test_the_project_names_no_place_outside_itself() -> None:
    found = []
    for folder in (*PACKAGES, "tests", "benchmarks", "docs", ".ci", "."):
        pattern = "*" if folder == "." else "**/*"
        for path in sorted((CHECKOUT / folder).glob(pattern)):
            if path.suffix not in {".py", ".md", ".toml", ".txt", ".sh", ".csv", ""} or not path.is_file():
                continue
            for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
                if any(pattern.search(line) for pattern in FOREIGN):
                    found.append(f"{name(path)}:{number}: {line.strip()[:80]}")
    report("foreign places", found)


def test_tests_are_no_package() -> None:
    assert not list((CHECKOUT / "tests").rglob("__init__.py")), "tests are collected by path (--import-mode=importlib)"


def test_packages_are_marked_as_typed_and_are_installed_where_asked() -> None:
    for package in PACKAGES:
        origin = importlib.import_module(package).__file__
        assert origin is not None and Path(origin).with_name("py.typed").is_file()
        if os.environ.get("NN_VERIFIER_INSTALLED"):
            assert CHECKOUT not in Path(origin).parents, f"{package} comes from the checkout, not from the wheel"


def test_exceptions_have_reasons() -> None:
    assert all(reason.strip() for reason in EXCEPTIONS.values())
