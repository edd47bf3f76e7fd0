"""From files to tokens: examples, their split over sites, and the mask that says what the loss sees."""
