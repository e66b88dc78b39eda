"""Where every figure of attachd's speed and size is produced: `make bench`. Nothing is asserted here.

A measured program always has a process of its own, and so has the platform it talks to (`stub`). What is compared is
measured in one run, in turns, and told as a ratio: machines differ and are shared, the ratio stays.
"""
