"""What concerns the machine that fedtune runs on."""
