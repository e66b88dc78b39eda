"""How a document reaches the platform.

Imports go one way: webchat > upload | oauth > http > guard. The platform's words (statuses, headers, URLs) end in this
package; what leaves it is ids, receipts and the four families of errors.
"""
