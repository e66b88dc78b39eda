"""What the platform was told, kept on disk: the journal."""
