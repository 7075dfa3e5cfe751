"""A model that the hub does not give is one line that says what to do."""

from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from transformers import AutoConfig

from raylab.experiment.config import Backbone, ConfigError
from raylab.models.backbone import load_config

SOURCE = "meta-llama/Llama-3.2-1B"


def gated() -> GatedRepoError:
    response: Any = SimpleNamespace(headers={}, request=None)
    return GatedRepoError("401 Client Error.\nAccess is restricted.", response=response)


@pytest.mark.parametrize(
    ("cause", "said", "words"),
    [
        (
            gated(),
            "You are trying to access a gated repo.\nMake sure ...",
            "set HF_TOKEN to a token",
        ),
        (
            LocalEntryNotFoundError("no file"),
            "We couldn't find it.\nCheck ...",
            "name the folder by --models",
        ),
        (
            None,
            "We couldn't connect to 'https://huggingface.co'\nto load",
            "the hub cannot be reached",
        ),
        (None, "x is not a valid\nmodel identifier", "x is not a valid model identifier"),
    ],
)
def test_a_model_that_the_hub_does_not_give_is_one_line(monkeypatch, cause, said, words):
    def refuse(*_, **__):
        raise OSError(said) from cause

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    with pytest.raises(ConfigError) as fault:
        load_config(Backbone("1b", SOURCE), SOURCE)
    text = str(fault.value)
    assert text.startswith(f"size '1b': no model at '{SOURCE}' (")
    assert words in text
    assert "\n" not in text
