"""What every daemon of ours is made of: the doors, the log, what systemd is told. Knows neither hosts nor clusters."""
