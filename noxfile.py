"""Every chore of the project: ``nox -l`` lists them, ``nox -s tests`` runs one.

Two environments hold torch: ``.nox/work``, with everything editable, for the sessions that run
models, and ``.nox/wheels``, into which `isolation` and `aliases` install wheels. Both are set up
once and again when a requirement changes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tomllib
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests"]

ROOT = Path(__file__).parent
DIST = ROOT / "dist"
SAMPLE = ROOT / "integration_tests" / "sample_plugin"
OUTSIDE = ROOT / ".nox" / "outside"  # wheels that are not ours: dist/ holds what is published
PLUGINS = sorted(folder.parent for folder in ROOT.glob("plugins/*/pyproject.toml"))
DISTRIBUTIONS = [ROOT / "core", *PLUGINS]
CONSTRAINT = f"--constraint={ROOT / 'constraints.txt'}"
GROUPS = nox.project.load_toml("pyproject.toml")


def group(*names: str) -> tuple[str, ...]:
    """Return the requirements of dependency groups of the root pyproject.toml."""
    return nox.project.dependency_groups(GROUPS, *names)


def project(folder: Path) -> dict:
    """Return the [project] table of a distribution."""
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def name(folder: Path) -> str:
    """Return the name of the distribution in a folder."""
    return project(folder)["name"]


def environment(session: nox.Session, where: str, *steps: list[str]) -> str:
    """Return the Python of a shared environment, installing only what has changed.

    Args:
        session: The session that needs it.
        where: Its name under ``.nox/``.
        steps: Arguments of successive ``pip install`` commands.
    """
    folder = ROOT / ".nox" / where
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = folder / "installed.sha256"
    known = [sys.version, repr(steps), (ROOT / "constraints.txt").read_text(encoding="utf-8")]
    known += [repr(project(each)) for each in DISTRIBUTIONS]
    want = hashlib.sha256("\n".join(known).encode()).hexdigest()
    if not python.exists():
        session.run(sys.executable, "-m", "virtualenv", "--quiet", str(folder), external=True)
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != want:
        stamp.unlink(missing_ok=True)
        for step in steps:
            pip(session, str(python), "install", CONSTRAINT, *step)
        stamp.write_text(want, encoding="utf-8")
    return str(python)


def pip(session: nox.Session, python: str, command: str, *arguments: str) -> None:
    """Run pip in a shared environment."""
    quiet = ["--quiet", "--disable-pip-version-check"]
    session.run(python, "-m", "pip", command, *quiet, *arguments, external=True)


def work(session: nox.Session) -> str:
    """Return the Python of the environment in which everything is installed editable."""
    return environment(session, "work", list(group("work")), editable())


def editable() -> list[str]:
    """Return the arguments of pip that install every distribution editable."""
    folders = [part for folder in DISTRIBUTIONS for part in ("-e", path(folder))]
    return ["--no-build-isolation", *folders]


def wheels(session: nox.Session) -> str:
    """Return the Python of the environment for wheels: third-party packages only."""
    needs = {need for folder in DISTRIBUTIONS for need in project(folder)["dependencies"]}
    outside = sorted(need for need in needs if not need.startswith("multivae-"))
    return environment(session, "wheels", [*group("build", "test"), *outside])


def path(folder: Path) -> str:
    """Return a folder the way pip must get it: ``./core``, never ``core``."""
    return f"./{folder.relative_to(ROOT).as_posix()}"


def run(session: nox.Session, python: str, *arguments: str, **env: str) -> None:
    """Run Python with one torch thread per process, unless the caller's environment says so."""
    env.setdefault("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    session.run(python, *arguments, env=env, external=True)


def build_all(session: nox.Session, python: str) -> None:
    """Build every wheel and sdist, and the aliases, into an empty ``dist/``."""
    shutil.rmtree(DIST, ignore_errors=True)
    for folder in DISTRIBUTIONS:
        options = ["--no-isolation", "--outdir", str(DIST)]
        session.run(python, "-m", "build", *options, path(folder), external=True, silent=True)
    session.run(python, "tools/build_aliases.py", str(DIST), external=True)


@nox.session(venv_backend="none")
def demo(session: nox.Session) -> None:
    """Train MoPoE on real data with 30 % of the modalities missing; results in runs/demo."""
    run(session, work(session), "examples/demo.py", *session.posargs)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Run all tests and examples in docstrings; ``nox -s tests -- -k name`` for some of them.

    The reference numbers and the conformance kit have sessions of their own.
    """
    folders = [f"{path(folder)}/{part}" for folder in DISTRIBUTIONS for part in ("src", "tests")]
    apart = [f"--ignore=integration_tests/{part}" for part in ("golden", "kit")]
    options = ["-n", "auto", "--doctest-modules", *folders, "integration_tests", *apart]
    run(session, work(session), "-m", "pytest", *options, *session.posargs)


@nox.session(venv_backend="none")
def golden(session: nox.Session) -> None:
    """Compare the models with the reference numbers in MULTIVAE_GOLDEN (../shared/golden)."""
    compare(session, *session.posargs)


def compare(session: nox.Session, *arguments: str, **env: str) -> None:
    """Run the comparison with reference numbers."""
    env["MULTIVAE_GOLDEN"] = os.environ.get(
        "MULTIVAE_GOLDEN", str(ROOT.parent / "shared" / "golden")
    )
    run(session, work(session), "-m", "pytest", "integration_tests/golden", *arguments, **env)


@nox.session(venv_backend="none")
def kit(session: nox.Session) -> None:
    """Check every model against the rules of all models, and the rules against mistakes."""
    conform(session, *session.posargs)


def conform(session: nox.Session, *arguments: str, **env: str) -> None:
    """Run the kit over every model, on all cores."""
    options = ["-n", "auto", "integration_tests/kit"]
    run(session, work(session), "-m", "pytest", *options, *arguments, **env)


@nox.session(venv_backend="none")
def truth(session: nox.Session) -> None:
    """Run golden and kit, and print model x {golden, oracle, kit, incomplete}."""
    results = ROOT / "runs" / "truth"
    results.mkdir(parents=True, exist_ok=True)
    for old in results.glob("*.json"):
        old.unlink()
    where = {"MULTIVAE_RESULTS": str(results)}
    compare(session, **where)
    conform(session, **where)
    run(session, work(session), "tools/truth_table.py", str(results))


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """Measure training time over the time of the bare networks (``-- --quick``: fewer rounds)."""
    run(session, work(session), "benchmarks/run.py", *session.posargs)
    run(session, work(session), "benchmarks/subset_cost.py")


@nox.session(venv_backend="none")
def reproduce(session: nox.Session) -> None:
    """Repeat published results in minutes each; ``-- --only jmvae mcvae`` some of them."""
    run(session, work(session), "benchmarks/reproduce/run.py", *session.posargs)


@nox.session(venv_backend="none")
def race(session: nox.Session) -> None:
    """Race against the package multivae 1.0.3 (an hour); ``-- --only mfeat/mopoe --seeds 0``."""
    python = environment(session, "race", list(group("build", "race")), editable())
    run(session, python, "benchmarks/race/run.py", *session.posargs)


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """Check types with mypy, strictly, against the installed torch."""
    run(session, work(session), "-m", "mypy", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting, the contracts on imports, and undeclared dependencies."""
    session.install(CONSTRAINT, *group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    sources = os.pathsep.join(str(folder / "src") for folder in DISTRIBUTIONS)
    session.run("lint-imports", env={"PYTHONPATH": sources})
    names = "attrs=attr|attrs,huggingface-hub=huggingface_hub"
    # extras that are imported by name, only when somebody asks for what needs them
    options = ["--package-module-name-map", names, "--per-rule-ignores", "DEP002=pandas|zuko"]
    for folder in DISTRIBUTIONS:
        with session.chdir(folder):
            session.run("deptry", "src", *options)


@nox.session
def build(session: nox.Session) -> None:
    """Build every wheel and sdist and the alias wheels into dist/."""
    session.install(CONSTRAINT, *group("build"))
    build_all(session, "python")
    session.log("\n".join(sorted(file.name for file in DIST.iterdir())))


@nox.session(venv_backend="none")
def isolation(session: nox.Session) -> None:
    """Install wheels in every combination and test each; then plugins with faults."""
    python = wheels(session)
    build_all(session, python)
    combinations = [[], *([plugin] for plugin in PLUGINS), PLUGINS]
    if (SAMPLE / "pyproject.toml").exists():
        options = ["--no-isolation", "--wheel", "--outdir", str(OUTSIDE)]
        session.run(python, "-m", "build", *options, str(SAMPLE), external=True, silent=True)
        combinations += [[SAMPLE]]
    for plugins in combinations:
        installed = [ROOT / "core", *plugins]
        names = [name(folder) for folder in installed]
        session.log(f"installed: {', '.join(names)}")
        only(session, python, "--no-deps", *names)
        own = [f"{path(installed[-1])}/tests"] if len(installed) < 3 else []
        own = [folder for folder in own if Path(folder).is_dir()]
        chosen = ["integration_tests/isolation/test_installed.py", *own, "-m", "not slow"]
        options = ["-q", "-n", "auto", *chosen]
        run(session, python, "-m", "pytest", *options, MULTIVAE_INSTALLED=",".join(names))
    only(session, python, "--no-deps", *(name(folder) for folder in DISTRIBUTIONS))
    faults = ["integration_tests/isolation/test_faults.py"]
    run(session, python, "-m", "pytest", "-q", *faults, "integration_tests/isolation/test_dist.py")


@nox.session(venv_backend="none")
def aliases(session: nox.Session) -> None:
    """Install multivae-core and multivae-mopoe from dist/ with no index; train and save."""
    python = wheels(session)
    build_all(session, python)
    only(session, python, "multivae-core", "multivae-mopoe")
    script = str(ROOT / "integration_tests" / "isolation" / "train_mopoe.py")
    with session.chdir(session.create_tmp()):
        run(session, python, script)


def only(session: nox.Session, python: str, *arguments: str) -> None:
    """Replace the project's distributions in the environment for wheels by those given."""
    ours = [name(folder) for folder in DISTRIBUTIONS] + ["multivae-mopoe"]
    if SAMPLE.exists():
        ours.append(name(SAMPLE))
    pip(session, python, "uninstall", "--yes", *ours)
    folders = [f"--find-links={folder}" for folder in (DIST, OUTSIDE) if folder.exists()]
    pip(session, python, "install", CONSTRAINT, "--no-index", *folders, *arguments)
    pip(session, python, "check")
