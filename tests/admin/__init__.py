"""The admin server's tests."""
