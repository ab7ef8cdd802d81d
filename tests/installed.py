"""What this machine has: tests of optional parts skip where a part is not installed or does not load."""

import importlib

import pytest


def need_decoder(decoder: str) -> None:
    """Skip where the decoder cannot be imported; torchcodec is installed by pip and still needs FFmpeg's libraries."""
    try:
        importlib.import_module({"pyav": "av"}.get(decoder, decoder))
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"{decoder} does not load here: {str(error).splitlines()[0]}")
