"""The command line: each module is one verb of ``hip``, thin over ``pipeline``."""
