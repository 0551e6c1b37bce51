"""Benchmarks: ``<suite>_<name>.py`` each measure one thing and write one result; the other modules are their frame."""
