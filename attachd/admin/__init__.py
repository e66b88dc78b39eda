"""What attachd shows of itself over HTTP on this machine, and the page to look at it.

server      answers requests: what may be asked, by whom, and what may be changed
snapshot    one picture of everything for all who watch, taken at most twice a second
listening   the loopback port or the Unix socket
document    the page, one HTML document with its script and style inside
wire        the JSON forms, both ways
"""
