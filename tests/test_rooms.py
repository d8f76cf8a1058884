"""Which folder may import which: one table, and nothing else."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "tinygmf"

# The network, to be read first, and what stands on the ground beside it.
GROUND = {
    "config": set(),
    "files": set(),
    "tensors": set(),
    "threads": set(),
    "pixels": {"files"},
    "image": {"config", "files", "pixels"},
    "layers": {"tensors"},
    "gma": {"config", "layers"},
    "model": {"config", "gma", "layers", "tensors"},
}
NETWORK = set(GROUND)
ROOMS = {
    "loops": {"config", "tensors", "threads"},
    "weights": NETWORK,
    "engine": NETWORK | {"loops", "weights"},
    "data": NETWORK | {"engine"},
    "dense": NETWORK | {"loops", "weights", "engine", "data"},
    "training": NETWORK | {"loops", "weights", "engine", "data", "dense"},
    "export": NETWORK | {"loops", "weights", "engine", "dense"},
    "study": NETWORK | {"weights", "engine", "data", "dense", "training"},
    "explore": NETWORK | {"weights", "engine", "data", "study", "export"},
    "checks": NETWORK | {"weights", "engine", "data", "dense", "training"},
}
ROOMS["commands"] = NETWORK | set(ROOMS)
ALLOWED = GROUND | ROOMS


def room_of(module: str) -> str:
    """`tinygmf.engine.devices` -> `engine`; the package itself -> ""."""
    return module.partition(".")[2].partition(".")[0]


def imported_modules(path: Path) -> set[str]:
    """The modules of this package that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in submodules if is_module(name)} or {str(node.module)}
    return {name for name in found if name.split(".")[0] == "tinygmf"}


def is_module(name: str) -> bool:
    place = PACKAGE.joinpath(*name.split(".")[1:])
    return place.with_suffix(".py").is_file() or place.is_dir()


def test_every_import_is_in_the_table():
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        here = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if here in ("__init__", "__main__"):
            continue
        for module in imported_modules(path):
            there = room_of(module)
            version_alone = module == "tinygmf"  # `from tinygmf import __version__`
            if there not in ALLOWED[here] | {here} and not version_alone:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_no_two_files_import_each_other_in_a_circle():
    graph = {module_name(path): imported_modules(path) for path in PACKAGE.rglob("*.py")}
    graph.pop("tinygmf")  # the face of the package: it hands on names from every room
    while leaves := [name for name, found in graph.items() if not found & set(graph) - {name}]:
        for name in leaves:
            del graph[name]
    assert not graph, f"circle among {sorted(graph)}"


def module_name(path: Path) -> str:
    parts = ["tinygmf", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(part for part in parts if part != "__init__")


def test_no_file_is_longer_than_350_lines():
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {str(path): n for path, n in lengths.items() if n > 350} == {}
