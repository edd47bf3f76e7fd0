"""Who holds which rows: splits of one dataset over sites, and of one site into training and held-out."""
