"""An experiment as one HTML page that needs nothing else: no script, no other host.

`page.py` says what is on it, `words.py` how figures are written, `plots.py` draws, `page.html` lays out.
"""
