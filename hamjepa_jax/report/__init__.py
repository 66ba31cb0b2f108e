"""The report of one or several runs: a page that needs nothing but a browser.

reading.py reads what is in the directories of runs; curves.py knows what is drawn for comparison and thins what is
long; drawing.py turns matplotlib's figures into SVG that follows the reader's colours, and the figures_*.py draw what
they are named after; pictures.py and tables.py make the rest, elements.py and style.py the HTML and its looks, page.py
puts everything in order.
"""
