"""Parity with the goldens; a package, so that its test files may be named like their neighbours one folder up."""
