"""From a claimed file to `sent/` or `failed/`.

dispatcher   claims when a slot is free, decides who goes next, handles what an attempt came to
pipeline     one attempt at one delivery, step by step
filing       every move of a file, and the folders of an inbox
content      the claimed file as the platform is to see it: type, name, bytes, digest
lifecycle    pure: what follows from an error, a crash, an unknown outcome
health       pure: what is paused, who may try, whose fault a failure is
slots        pure but for waiting: how many files may be claimed, and whose turn it is
"""
