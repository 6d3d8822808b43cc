"""The files around a new plugin's code: what makes a package of it, its licence, and its checks."""

from __future__ import annotations

PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.18"]
build-backend = "hatchling.build"

[project]
name = "usbvfiod-$name"
version = "0.1.0"
description = "A plugin of usbvfiod: $name"
readme = "README.md"
requires-python = ">=3.11"
license = "MIT"
license-files = ["LICENSE"]
dependencies = ["usbvfiod"]

[project.optional-dependencies]
test = ["usbvfiod[test]"]

[project.entry-points.usbvfiod]
$name = "$module"

[tool.ruff]
line-length = 120

[tool.ruff.lint]
select = ["E", "F", "W", "I", "B", "UP"]

[tool.mypy]
strict = true
files = ["$module", "tests"]

[tool.pytest.ini_options]
addopts = "-rs"  # why a test of a contract is skipped
testpaths = ["tests"]
"""

README = """\
# usbvfiod-$name

$what

```sh
pip install '.[test]'
pytest
usbvfiod plugins
$usage
```

`$module/__init__.py` is all of it. The tests use it with the guest driver of usbvfiod's test kit, and need no
hardware, VM or privileges. `ci.sh` runs them together with the checks of style and types.

The licence is MIT, see `LICENSE`; put your name there, or choose another one.
"""

LICENSE = """\
MIT License

Copyright (c) $year the authors of usbvfiod-$name

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""

GITIGNORE = """\
__pycache__/
*.egg-info/
.mypy_cache/
.pytest_cache/
.ruff_cache/
.venv/
build/
dist/
"""

CI = """\
#!/bin/sh
# All checks, here and in continuous integration. `pip install '.[test]' mypy ruff` brings what they need.
set -e
ruff check .
ruff format --check .
mypy
pytest
"""

WORKFLOW = """\
# For GitHub. Set the repository's variable USBVFIOD to what pip installs usbvfiod from: the address of its source
# repository (git+https://...) or of a wheel.
name: checks
on: [push, pull_request]
jobs:
  checks:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.11"
      - run: pip install "$$USBVFIOD" && pip install '.[test]' mypy ruff
        env:
          USBVFIOD: $${{ vars.USBVFIOD }}
      - run: sh ci.sh
"""

FILES = {
    "pyproject.toml": PYPROJECT,
    "README.md": README,
    "LICENSE": LICENSE,
    ".gitignore": GITIGNORE,
    "ci.sh": CI,
    ".github/workflows/checks.yml": WORKFLOW,
}
"""The files by path, as templates."""
