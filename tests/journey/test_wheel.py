"""A wheel needs no checkout: installed by itself, it upgrades and downgrades a database from an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import sqlalchemy as sa

ROOT = Path(__file__).parents[2]
SECTIONS = [
    ("alembic", "rag_chunks", "rag_0004"),
    ("documents", "vector_documents", "documents_0006"),
    ("products", "products", "products_0008"),
    ("models", "chunk_embeddings", "models_0003"),
]
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "amprenta_vectors", "alembic", "alembic.ini")


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """What a command printed; the test fails, showing it, where the command does."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**environment, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment that has the wheel, and of this one only the dependencies."""
    work = tmp_path_factory.mktemp("wheel")
    tree = work / "tree"
    tree.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).is_file():
            shutil.copy(ROOT / name, tree)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", work, tree, cwd=work)
    (wheel,) = work.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", work / "venv", cwd=work)
    commands = work / "venv" / "bin"
    install = ("install", "--no-deps", "--no-index", wheel)
    run(sys.executable, "-m", "pip", "--python", commands / "python", *install, cwd=work)
    # A .pth file found through a .pth file is not read, so an editable install of the checkout stays out of sight.
    site = Path(
        run(commands / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=work).strip()
    )
    dependencies = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    (site / "dependencies.pth").write_text("\n".join(dependencies))
    return commands


def test_the_package_that_runs_is_the_installed_one(installed: Path, tmp_path: Path) -> None:
    where = "import amprenta_vectors as a, amprenta_vectors.migrate as m; print(a.__file__, m.migrations_folder())"
    for path in run(installed / "python", "-c", where, cwd=tmp_path).split():
        assert Path(path).is_relative_to(installed.parent)


@pytest.mark.parametrize(("section", "table", "head"), SECTIONS)
def test_it_upgrades_and_downgrades_a_database_from_an_empty_folder(
    installed: Path, tmp_path: Path, database_url: str, section: str, table: str, head: str
) -> None:
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)

    def typed(command: str) -> str:
        arguments = ("db", command, "--section", section)
        return run(installed / "amprenta-vectors", *arguments, cwd=tmp_path, DATABASE_URL=database_url)

    typed("upgrade")
    assert {table, "migration_run"} <= set(sa.inspect(engine).get_table_names())
    assert f"{head} (head)" in typed("current")
    typed("downgrade")
    assert table not in sa.inspect(engine).get_table_names()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("section", "table", "head"), SECTIONS)
def test_an_application_mounts_its_section_as_the_documentation_says(
    installed: Path, tmp_path: Path, database_url: str, section: str, table: str, head: str
) -> None:
    documented = (ROOT / "docs" / "alembic.md").read_text()
    ini = documented.partition("```ini\n")[2].partition("```")[0]
    ini = ini.replace("amprenta_section = alembic", f"amprenta_section = {section}")
    ini = ini.replace("versions/rag", f"versions/{head.partition('_')[0]}")
    (tmp_path / "alembic.ini").write_text("[alembic]\nscript_location = theirs\n\n" + ini)
    alembic = (installed / "python", "-m", "alembic", "-n", "amprenta")
    for command in ("upgrade head", "check", "downgrade base"):
        run(*alembic, *command.split(), cwd=tmp_path, DATABASE_URL=database_url)
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)
    assert not {table, "alembic_version"} & set(sa.inspect(engine).get_table_names())
