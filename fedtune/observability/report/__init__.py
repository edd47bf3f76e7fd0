"""The parts of report.html: sections in the order of the page, figures, and the style sheet."""
