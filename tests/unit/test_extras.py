import pytest

from amprenta_vectors.errors import MissingExtra
from amprenta_vectors.extras import require_extra


def test_a_missing_package_names_the_extra_to_install() -> None:
    with pytest.raises(MissingExtra) as caught:
        require_extra("no_such_package.inner", "sandbox")
    assert "'no_such_package'" in caught.value.message
    assert caught.value.hint == "pip install 'amprenta_vectors[sandbox]'"
    assert caught.value.exit_code == 2


def test_a_present_package_is_handed_over() -> None:
    assert require_extra("json.decoder", "sandbox").JSONDecoder
