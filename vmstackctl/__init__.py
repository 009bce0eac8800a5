"""The operator's command: asks a host's vmstackd over its socket, and shows what it answers."""
