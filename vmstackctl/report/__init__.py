"""``vmstackctl report``: a recorded trace as pictures, and as one page with all of them."""
