"""Programs of other projects that some tests run: Prometheus, nginx, a browser.

`make test` needs none of them: tests that need a missing program are skipped. Continuous integration installs them all
(.ci/run) and sets CI; then a missing program fails its tests.
"""

import os
import shutil

import pytest


def needs(*names: str) -> pytest.MarkDecorator:
    """Mark a test that runs these programs, by the names that a shell would find them by."""
    missing = [name for name in names if shutil.which(name) is None]
    return pytest.mark.skipif(
        bool(missing) and "CI" not in os.environ, reason=f"not on this machine: {', '.join(missing)}"
    )
