"""The whole pipeline in a few minutes, on made or on given media, ending in one report."""
