"""torch.distributed is imported by parallel/ alone; the checkpoint store may have its checkpoint package."""

import ast
from pathlib import Path

import tapwater

ROOT = Path(str(tapwater.__file__)).parent  # an editable installation has built files elsewhere


def imported(path: Path) -> set[str]:
    """Full names of all modules and members a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and node.attr == "distributed":
            names |= {"torch.distributed"} if isinstance(node.value, ast.Name) and node.value.id == "torch" else set()
    return names


def test_only_parallel_imports_torch_distributed() -> None:
    users = {path.relative_to(ROOT) for path in ROOT.rglob("*.py") for name in imported(path) if _distributed(name)}
    assert any(path.parts[0] == "parallel" for path in users)
    for path in users:
        store = path.parts[0] == "checkpoint" and path.name.startswith("store")
        assert path.parts[0] == "parallel" or store, path
        if store:
            names = {name for name in imported(ROOT / path) if _distributed(name)}
            assert all(name.startswith("torch.distributed.checkpoint") for name in names), (path, names)


def _distributed(name: str) -> bool:
    return name == "torch.distributed" or name.startswith("torch.distributed.")
