"""What sweeps never do: load code or pickles from files, run a shell on text, or write down keys."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Commands

import analysis
import sweep

PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
CODE = {"eval", "exec", "compile", "__import__"}
LOADERS = {"unsafe_load", "full_load", "load_module", "read_pickle", "to_pickle", "system", "popen", "find_class"}
ALLOWED = {
    "sweep/world.py: import pickle",  # whether a rank's own exception can be sent to the others, by torch
    "analysis/tables/where.py: .eval",  # of pandas, which gets expressions only after they were parsed and checked
}


def findings(tree: ast.AST) -> Iterator[str]:
    """What of `tree` could run code that came as data."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (f"import {name.name}" for name in names if name.name.split(".")[0] in PICKLES)
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in PICKLES:
                yield f"import {module}"
            case ast.Call(func=ast.Name(id=name)) if name in CODE:
                yield name
            case ast.Call(func=ast.Attribute(attr=name)) if name in LOADERS or name == "eval":
                yield f".{name}"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load"), keywords=keywords):
                if not any(k.arg == "weights_only" and _constant(k.value) is True for k in keywords):
                    yield "torch.load"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="yaml"), attr="load")):
                yield "yaml.load"
            case ast.keyword(arg=("shell" | "trust_remote_code" | "allow_pickle") as name, value=value):
                if _constant(value) is not False:
                    yield f"{name}="


def _constant(node: ast.AST) -> object:
    return node.value if isinstance(node, ast.Constant) else node


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from pickle import loads", "import torch.x, cloudpickle", "eval(text)", "exec(text)",
        "torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)", "yaml.load(text)", "yaml.unsafe_load(text)", "os.system(text)",
        "subprocess.run(text, shell=True)", "load_dataset(name, trust_remote_code=yes)", "frame.eval(text)",
    ],
)  # fmt: skip
def test_the_scan_finds(text: str) -> None:
    assert list(findings(ast.parse(text)))


def test_no_module_loads_code_or_pickles_or_runs_a_shell() -> None:
    found, modules = set(), 0
    for package in (sweep, analysis):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            name = path.relative_to(root.parent).as_posix()
            found |= {f"{name}: {finding}" for finding in findings(ast.parse(path.read_text()))}
            modules += 1
    assert modules > 100
    assert found == ALLOWED


KEYS = {
    "WANDB_API_KEY": "planted0environment0123456789abcdef01234",
    "HF_TOKEN": "hf_planted0environment0123456789",
    "HUGGING_FACE_HUB_TOKEN": "hf_planted0environment0123456789",
    "AWS_SECRET_ACCESS_KEY": "planted0environment0aws",
}


def test_planted_keys_are_written_nowhere(tmp_path: Path) -> None:
    home, commands = tmp_path / "home", Commands(tmp_path, tmp_path / "cache")
    home.mkdir()
    netrc = home / ".netrc"
    netrc.write_text("machine api.wandb.ai login user password planted0netrc0123456789abcdef0123456789\n")
    netrc.chmod(0o600)
    env = KEYS | {"HOME": str(home)}
    said = [
        commands.run("sweep", *commands.sweep_arguments("tracking=wandb", "tracking.mode=offline"), **env),
        commands.run("sync", "--mode", "offline", "--project", "other", str(tmp_path / "out"), **env),
        commands.run("status", "--json", "-", str(tmp_path / "out"), **env),
    ]
    assert [code for code, _, _ in said] == [0, 0, 0], said
    assert "planted0" not in str(said)
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path != netrc]
    assert any(path.suffix == ".wandb" for path in written)
    assert any(path.name == "manifest.json" for path in written)
    assert [path for path in written if b"planted0" in path.read_bytes()] == []


@pytest.mark.parametrize("key", ["data.files", "data.test_files", "data.hub_path", "data.cache_dir"])
def test_an_address_with_a_password_is_refused_unseen(tmp_path: Path, key: str) -> None:
    commands = Commands(tmp_path, tmp_path / "cache")
    value = "https://user:planted0@host.invalid/text.jsonl"
    given = f"{key}=[{value}]" if key.endswith("files") else f"{key}={value}"
    code, out, err = commands.run("plan", *commands.sweep_arguments(given))
    assert (code, out) == (2, "")
    assert key in err
    assert "password" in err
    assert "planted0" not in err
