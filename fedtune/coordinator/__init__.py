"""The coordinator's side of a deployment: its folder, the SuperLink behind a gate, runs that last a night."""
