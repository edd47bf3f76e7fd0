"""The commands, one module each: they put the parts together and print."""
