"""attachd: a file dropped into an inbox folder becomes a Genesys Cloud web messaging conversation."""

__version__ = "0.1.0"
