"""What setup.cfg and alembic.ini list by hand is what is there."""

from __future__ import annotations

from configparser import ConfigParser
from pathlib import Path

import pytest

from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.migrate import alembic_config
from amprenta_vectors.sections import SECTIONS

ROOT = Path(__file__).parents[2]
MAPPED = {"amprenta_vectors": ROOT / "amprenta_vectors", "amprenta_vectors.migrations": ROOT / "alembic"}


def read(name: str, **defaults: str) -> ConfigParser:
    parser = ConfigParser(defaults)
    parser.read(ROOT / name)
    return parser


def packages_below(name: str, folder: Path) -> set[str]:
    """The dotted name of every folder with Python files, ``folder`` being ``name``."""
    folders = {path.parent for path in folder.rglob("*.py")}
    return {".".join((name, *found.relative_to(folder).parts)) for found in folders}


def test_setup_cfg_lists_every_package_and_every_folder_of_revisions() -> None:
    listed = read("setup.cfg")["options"]["packages"].split()
    there = set().union(*(packages_below(name, folder) for name, folder in MAPPED.items()))
    assert sorted(listed) == sorted(there)


def test_every_package_but_the_revisions_can_be_imported_by_name() -> None:
    for folder in {path.parent for path in MAPPED["amprenta_vectors"].rglob("*.py")}:
        assert (folder / "__init__.py").is_file(), folder
    assert not list(MAPPED["amprenta_vectors.migrations"].rglob("__init__.py")), "it would hide Alembic itself"


def test_setup_cfg_ships_every_file_that_is_not_python() -> None:
    shipped = {
        package: set(names.replace(",", " ").split())
        for package, names in read("setup.cfg")["options.package_data"].items()
    }
    for package, folder in MAPPED.items():
        found = {
            str(path.relative_to(folder))
            for path in folder.rglob("*")
            if path.is_file() and path.suffix not in {".py", ".pyc"}
        }
        assert found == shipped[package]


def test_who_works_on_the_package_has_every_extra_but_torch() -> None:
    extras = read("setup.cfg")["options.extras_require"]
    named = extras["dev"].split()[0]
    assert named == f"amprenta_vectors[{','.join(sorted(set(extras) - {'dev', 'sentence_transformers'}))}]"


def test_the_text_of_the_licence_that_the_metadata_name_is_there() -> None:
    metadata = read("setup.cfg")["metadata"]
    assert metadata["license_expression"] == "Apache-2.0"
    assert "Apache License\n                           Version 2.0" in (ROOT / metadata["license_files"]).read_text()


def test_alembic_ini_and_the_package_name_the_same_sections_and_folders() -> None:
    ini = read("alembic.ini", here=".")
    logging = {"loggers", "handlers", "formatters"}
    sections = {name for name in ini.sections() if name not in logging and "_" not in name}
    assert sections == set(SECTIONS)
    for name, section in SECTIONS.items():
        expected = [f"./alembic/versions/{folder}" for folder in section.folders]
        assert ini[name]["version_locations"].split() == expected


def test_no_two_sections_share_a_version_table() -> None:
    tables = [section.version_table for section in SECTIONS.values()]
    assert len(set(tables)) == len(tables)
    assert all(table.startswith("amprenta_version_") for table in tables)


def test_an_unknown_section_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigError, match="there is no section 'nowhere'"):
        alembic_config(Settings(), "nowhere")
