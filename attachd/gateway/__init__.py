"""How a document reaches the platform.

Imports go one way: webchat | webmessaging > upload | oauth | channel > frames > deployment | guests | http > guard. The
platform's words (statuses, frames, URLs) end in this package; what leaves it is ids, receipts and the four families of
errors.
"""
