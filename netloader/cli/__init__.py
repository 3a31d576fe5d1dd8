"""The command `netloader`. Its entry point is `main.main`; only this room needs typer and rich."""
