"""Seeing the files of an inbox: `watch` hints, `scan` looks, `names` and `settle` decide, `inbox` puts it together."""
