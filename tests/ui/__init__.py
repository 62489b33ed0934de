"""Tests in a real browser, one for all of them: fixtures of the scope ``package``."""
