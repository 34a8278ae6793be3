"""The atlas in a browser: a server on one's own machine. What its pages show is the work of `pages/` and the atlas."""
