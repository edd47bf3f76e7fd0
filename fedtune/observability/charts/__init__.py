"""Charts as inline SVG: no library, no script, readable in light, dark and print.

Colours come from the page's style sheet by class, texts are real texts, and each mark has a ``<title>``.
"""
