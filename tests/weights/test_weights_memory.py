"""The memory of an average is that of blocks, whatever the size of the models."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap

import pytest
from weight_samples import tiny, written

from ostension.model.presets import preset


@pytest.mark.slow
def test_an_average_takes_less_memory_than_half_a_model(tmp_path):
    config = preset("tiny-vit")
    text = dataclasses.replace(config.text, width=512, vocab_size=100_000, layers=1)
    folder = written(tiny(text=text), tmp_path / "model")
    size = (folder / "model.safetensors").stat().st_size
    assert size > 200_000_000
    code = f"""
        import resource, shutil
        from ostension.weights import arithmetic
        import ostension.formats.load, ostension.model.clip
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        arithmetic.interpolate({str(folder)!r}, {str(folder)!r}, {{0.3: {str(tmp_path / "out")!r}}})
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
    """
    made = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert int(made.stdout) < size / 2
