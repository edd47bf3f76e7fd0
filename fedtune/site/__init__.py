"""A site: the machine that fedtune runs on, what it allows, what it does and what it writes down."""
