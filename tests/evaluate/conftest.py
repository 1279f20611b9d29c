from typing import Any

import pytest
import small_decoder


@pytest.fixture(scope="session")
def model() -> Any:
    """Graph definition and parameters of a small random model."""
    return small_decoder.random_model()


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Prompts of many lengths."""
    return small_decoder.random_prompts()
