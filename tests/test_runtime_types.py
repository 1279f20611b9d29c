"""The suite checks the types of what it calls: wrong ones are errors in modules with and without array annotations."""

import os

import numpy as np
import pytest
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import TypeCheckError

from jaxtune.batch import Example
from jaxtune.science.contrasts import contrast
from jaxtune.storage.stores import is_url

pytestmark = pytest.mark.skipif(os.environ.get("JAXTUNE_TEST_TYPES") == "0", reason="the checks are switched off")


def test_an_argument_of_another_type_is_an_error():
    with pytest.raises(BeartypeCallHintParamViolation):
        is_url(3)  # pyright: ignore[reportArgumentType]


def test_axes_of_one_name_have_one_size():
    with pytest.raises(TypeCheckError, match="loss_weights"):
        Example(tokens=np.zeros(3, np.int32), loss_weights=np.zeros(2, np.float32))
    with pytest.raises(TypeCheckError, match="weights"):
        contrast(np.zeros((2, 5)), np.zeros(3))
