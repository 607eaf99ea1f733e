"""A page to answer and draw in a browser, and the JSON API that it uses."""
