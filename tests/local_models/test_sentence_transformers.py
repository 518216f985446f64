"""The embedder of models on this machine, with a tiny one that is made here: no name is asked for over a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import execute
from click.testing import CliRunner

from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.embedders.factory import open_embedder
from amprenta_vectors.errors import SourceNotFound

DIMENSION = 16
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "about", "number", "the", "one", "two", "three", "page")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of some thousand random weights, as its makers would save one."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    bare = tmp_path_factory.mktemp("bert")
    (bare / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(bare / "vocab.txt")).save_pretrained(bare)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=DIMENSION,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(bare)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    SentenceTransformer(modules=[Transformer(str(bare)), Pooling(DIMENSION)], device="cpu").save(str(folder))
    return folder


@pytest.fixture
def settings(model: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Settings.load(embedder="sentence_transformers", sentence_transformers_model=str(model))


def test_a_folder_is_opened_by_its_name_and_gives_the_packages_own_vectors(settings: Settings, model: Path) -> None:
    from sentence_transformers import SentenceTransformer

    embedder = open_embedder(settings)
    assert (embedder.model.name, embedder.model.dimension) == ("tiny", DIMENSION)
    texts = ["the page about number one", "the page about number two", ""]
    found = embedder.embed(texts)
    assert found.dtype == np.float32
    assert np.allclose(found, SentenceTransformer(str(model)).encode(texts), atol=1e-6)
    assert not np.allclose(found[0], found[1])
    assert embedder.embed([]).shape == (0, DIMENSION)


@pytest.mark.parametrize("name", ["/no/such/folder", "nobody/has-such-a-model"])
def test_a_model_that_is_not_there_is_named_with_what_to_type(settings: Settings, name: str) -> None:
    with pytest.raises(SourceNotFound) as caught:
        open_embedder(settings.model_copy(update={"sentence_transformers_model": name}))
    assert repr(name) in caught.value.message
    assert "export SENTENCE_TRANSFORMERS_MODEL=" in caught.value.hint


def test_rows_are_embedded_by_it_and_verified(engine: sa.Engine, settings: Settings, tmp_path: Path) -> None:
    execute(engine, f"CREATE TABLE pages (id integer PRIMARY KEY, body text, embedding vector({DIMENSION}))")
    execute(engine, "INSERT INTO pages SELECT n, 'page about number ' || n FROM generate_series(1, 50) n")
    (tmp_path / "amprenta.toml").write_text(
        f'[tables.pages]\ntable = "pages"\nkey = "id"\ntext = "body"\ndimension = {DIMENSION}\nsource = "rows"\n'
    )
    variables = {
        "DATABASE_URL": engine.url.render_as_string(hide_password=False),
        "AMPRENTA_CONFIG": str(tmp_path / "amprenta.toml"),
        "AMPRENTA_TABLE": "pages",
        "AMPRENTA_EMBEDDER": "sentence_transformers",
        "SENTENCE_TRANSFORMERS_MODEL": settings.sentence_transformers_model,
    }
    done = CliRunner().invoke(main, ["backfill", "--resume"], env=variables)
    assert done.exit_code == 0, done.output
    assert "verified 50 vectors" in done.output
    assert execute(engine, "SELECT count(embedding) FROM pages") == [(50,)]
