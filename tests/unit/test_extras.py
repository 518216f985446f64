import importlib
import sys

import pytest

from amprenta_vectors.errors import MissingExtra
from amprenta_vectors.extras import require_extra


def test_a_missing_package_names_the_extra_to_install() -> None:
    with pytest.raises(MissingExtra) as caught:
        require_extra("no_such_package.inner", "sandbox")
    assert "'no_such_package'" in caught.value.message
    assert caught.value.hint == "pip install 'amprenta_vectors[sandbox]'"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("module", "extra"), [("assistant", "documents"), ("langchain", "langchain")])
def test_an_integration_without_langchain_names_the_extra_to_install(
    module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("assistant", "langchain"):
        monkeypatch.delitem(sys.modules, f"amprenta_vectors.integrations.{name}", raising=False)
    for name in ("documents", "embeddings"):
        monkeypatch.setitem(sys.modules, f"langchain_core.{name}", None)
    with pytest.raises(MissingExtra) as caught:
        importlib.import_module(f"amprenta_vectors.integrations.{module}")
    assert caught.value.hint == f"pip install 'amprenta_vectors[{extra}]'"


def test_a_present_package_is_handed_over() -> None:
    assert require_extra("json.decoder", "sandbox").JSONDecoder
