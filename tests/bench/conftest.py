"""The fixtures of the budgets: the real process, as the tests in tests/e2e have it."""

from tests.e2e.conftest import image, run, serve

__all__ = ["image", "run", "serve"]
