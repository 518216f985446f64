"""The code of docs/async.md, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from langchain_core.embeddings import DeterministicFakeEmbedding

PAGE = Path(__file__).parents[2] / "docs" / "async.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def environment(engine: sa.Engine, upgraded_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"DATABASE_URL": upgraded_url, "VECTOR_BACKEND": "pgvector"}.items():
        monkeypatch.setenv(name, value)


async def run(code: str, **names: Any) -> dict[str, Any]:
    """Run code that awaits at its top level, and return its names."""
    lines = ["async def page():", *(f"    {line}" for line in code.splitlines()), "    return locals()"]
    exec("\n".join(lines), names)
    found: dict[str, Any] = await names["page"]()
    return found


def test_the_first_lines_of_an_application(capsys: pytest.CaptureFixture[str]) -> None:
    exec(BLOCKS[0], {})
    assert capsys.readouterr().out == "['a']\n"


async def test_a_session_and_langchain(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    url = engine.url.set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)
    added: list[Any] = []
    monkeypatch.setattr("sqlalchemy.ext.asyncio.AsyncSession.add", lambda _, what: added.append(what))
    article = SimpleNamespace(id="article", vector=[1.0] * 8)
    page = await run(BLOCKS[1].replace("postgresql+asyncpg://…", url), Article=object)
    await page["save"](article)
    assert added == [article]
    assert list(await page["store"].fetch(["article"])) == ["article"]
    await page["engine"].dispose()
    page = await run(BLOCKS[2], embeddings=DeterministicFakeEmbedding(size=8))
    assert [found.page_content for found in await page["vectors"].asimilarity_search("a text", k=1)] == ["a text"]
    await page["vectors"].store.close()


def test_what_makes_an_engine_work_behind_a_pooler_is_what_the_refusal_says() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for arguments in ('{"statement_cache_size": 0, "prepared_statement_cache_size": 0}', '{"prepare_threshold": None}'):
        assert f"connect_args={arguments})" in text
