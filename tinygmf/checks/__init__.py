"""Checks that an installation works."""
