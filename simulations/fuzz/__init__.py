"""Bad inputs by the thousand into every command that reads what others wrote; `python -m simulations.fuzz --help`."""
